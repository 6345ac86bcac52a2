"""Decoders in Flax NNX: the Llama family and GPT-2, from and to the files of others."""

from greats_jax.models.config import DecoderConfig, RopeConfig
from greats_jax.models.decoder import Decoder
from greats_jax.models.loading import from_pretrained, save_pretrained
from greats_jax.models.partition import combine, partition

__all__ = [
    "Decoder",
    "DecoderConfig",
    "RopeConfig",
    "combine",
    "from_pretrained",
    "partition",
    "save_pretrained",
]
