"""Qwen2 and Qwen2.5: the Llama layer with biases on queries, keys and values; windows on upper layers by option."""

from typing import Any

from greats_jax.models.config import DecoderConfig
from greats_jax.models.families.llama import (
    LLAMA,
    read_llama_like,
    read_windows,
    write_llama_like,
    write_windows,
)


def _read(hf: Any) -> DecoderConfig:
    return DecoderConfig(**read_llama_like(hf, "qwen2"), windows=read_windows(hf), qkv_bias=True)


def _write(config: DecoderConfig) -> dict[str, Any]:
    return write_llama_like(config) | write_windows(config)


QWEN2 = LLAMA._replace(
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    config_class="Qwen2Config",
    read=_read,
    write=_write,
)
