"""Qwen3: the Llama layer with a norm on each head's queries and keys; biases and windows by option."""

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
    bias = bool(hf.attention_bias)
    return DecoderConfig(
        **read_llama_like(hf, "qwen3"), windows=read_windows(hf), qkv_bias=bias, out_bias=bias, qk_norm=True
    )


def _write(config: DecoderConfig) -> dict[str, Any]:
    return write_llama_like(config) | write_windows(config) | {"attention_bias": config.qkv_bias}


QWEN3 = LLAMA._replace(
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    config_class="Qwen3Config",
    read=_read,
    write=_write,
)
