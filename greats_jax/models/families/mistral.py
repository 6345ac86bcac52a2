"""Mistral: the Llama layer with a sliding attention window."""

from typing import Any

from greats_jax.models.config import DecoderConfig
from greats_jax.models.families.llama import LLAMA, read_llama_like, write_llama_like


def _read(hf: Any) -> DecoderConfig:
    windows = (hf.sliding_window,) * hf.num_hidden_layers if hf.sliding_window else ()
    return DecoderConfig(**read_llama_like(hf, "mistral"), windows=windows)


def _write(config: DecoderConfig) -> dict[str, Any]:
    return write_llama_like(config) | {"sliding_window": config.windows[0] if config.windows else None}


MISTRAL = LLAMA._replace(
    name="mistral",
    architecture="MistralForCausalLM",
    config_class="MistralConfig",
    read=_read,
    write=_write,
)
