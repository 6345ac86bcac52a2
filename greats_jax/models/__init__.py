"""Decoders in Flax NNX (the Llama family and GPT-2) and a sentence encoder, from and to the files of others."""

from greats_jax.models.adapters import load_adapter, save_adapter
from greats_jax.models.config import DecoderConfig, LoraConfig, RopeConfig
from greats_jax.models.decoder import Decoder
from greats_jax.models.loading import from_pretrained, from_shape, read_shape, save_pretrained
from greats_jax.models.lora import add_lora, merge_lora
from greats_jax.models.partition import combine, cut_layers, has_adapters, partition
from greats_jax.models.sentence_encoder import SentenceEncoder, load_sentence_encoder
from greats_jax.models.tokenizer import load_tokenizer

__all__ = [
    "Decoder",
    "DecoderConfig",
    "LoraConfig",
    "RopeConfig",
    "SentenceEncoder",
    "add_lora",
    "combine",
    "cut_layers",
    "from_pretrained",
    "from_shape",
    "has_adapters",
    "load_adapter",
    "load_sentence_encoder",
    "load_tokenizer",
    "merge_lora",
    "partition",
    "read_shape",
    "save_adapter",
    "save_pretrained",
]
