"""Llama 1 to 3 and its many relatives with the same layer (SmolLM2, TinyLlama); also the layer of Mistral and Qwen."""

from typing import Any

import jax
from flax import nnx

from greats_jax.errors import ModelError
from greats_jax.models.config import DecoderConfig, RopeConfig, dtype_named
from greats_jax.models.families.family import Family, Weight, activation_named, token_ids, written_token_ids
from greats_jax.models.layers import Dropout, Linear, RMSNorm, activate


class SelfAttention(nnx.Module):
    """Grouped-query attention with separate projections; norms per head where the family has them."""

    def __init__(self, config: DecoderConfig, key: jax.Array):
        d, h, n, dtype = config.width, config.head_dim, config.layers, dtype_named(config.dtype)
        q_key, k_key, v_key, o_key = jax.random.split(key, 4)

        def linear(d_in, d_out, bias, key):
            return Linear(d_in, d_out, layers=n, bias=bias, dtype=dtype, key=key)

        self.q_proj = linear(d, config.heads * h, config.qkv_bias, q_key)
        self.k_proj = linear(d, config.kv_heads * h, config.qkv_bias, k_key)
        self.v_proj = linear(d, config.kv_heads * h, config.qkv_bias, v_key)
        self.o_proj = linear(config.heads * h, d, config.out_bias, o_key)
        self.q_norm = nnx.data(RMSNorm((n, h), config.norm_eps, dtype) if config.qk_norm else None)
        self.k_norm = nnx.data(RMSNorm((n, h), config.norm_eps, dtype) if config.qk_norm else None)
        self.head_dim = h

    def __call__(self, x: jax.Array, attend, dropout: Dropout | None):
        """[B, T, d] -> [B, T, d], and what `attend` keeps."""

        def heads(y):
            return y.reshape(*y.shape[:-1], -1, self.head_dim)

        q, k, v = (heads(project(x, dropout)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        mixed, kept = attend(q, k, v)
        return self.o_proj(mixed.reshape(*x.shape[:-1], -1), dropout), kept


class GatedMLP(nnx.Module):
    """down(act(gate(x)) · up(x))."""

    def __init__(self, config: DecoderConfig, key: jax.Array):
        gate_key, up_key, down_key = jax.random.split(key, 3)
        shared = {"layers": config.layers, "bias": config.mlp_bias, "dtype": dtype_named(config.dtype)}
        self.gate_proj = Linear(config.width, config.ffn_width, key=gate_key, **shared)
        self.up_proj = Linear(config.width, config.ffn_width, key=up_key, **shared)
        self.down_proj = Linear(config.ffn_width, config.width, key=down_key, **shared)
        self.activation = config.activation

    def __call__(self, x: jax.Array, dropout: Dropout | None) -> jax.Array:
        """[B, T, d] -> [B, T, d]."""
        gated = activate(self.activation, self.gate_proj(x, dropout)) * self.up_proj(x, dropout)
        return self.down_proj(gated, dropout)


class LlamaBlock(nnx.Module):
    """One layer, norms before attention and before the feed-forward part."""

    def __init__(self, config: DecoderConfig, key: jax.Array):
        attention_key, mlp_key = jax.random.split(key)
        dtype = dtype_named(config.dtype)
        self.input_layernorm = RMSNorm((config.layers, config.width), config.norm_eps, dtype)
        self.self_attn = SelfAttention(config, attention_key)
        self.post_attention_layernorm = RMSNorm((config.layers, config.width), config.norm_eps, dtype)
        self.mlp = GatedMLP(config, mlp_key)

    def __call__(self, x: jax.Array, attend, dropout: Dropout | None = None):
        """[B, T, d] -> [B, T, d], and what `attend` keeps."""
        mixed, kept = self.self_attn(self.input_layernorm(x), attend, dropout)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x), dropout), kept


def read_rope(hf: Any) -> RopeConfig:
    """Rotary settings of a transformers config, which has already merged the spellings of versions 4 and 5."""
    settings = dict(hf.rope_parameters)
    kind = settings.get("rope_type", "default")
    if settings.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError("config.json: rotary embedding of a part of the head (partial_rotary_factor) is not supported")
    theta = float(settings["rope_theta"])
    match kind:
        case "default":
            return RopeConfig(theta)
        case "linear":
            return RopeConfig(theta, "linear", float(settings["factor"]))
        case "llama3":
            return RopeConfig(
                theta,
                "llama3",
                float(settings["factor"]),
                float(settings["low_freq_factor"]),
                float(settings["high_freq_factor"]),
                int(settings["original_max_position_embeddings"]),
            )
    raise ModelError(f"config.json: rope type {kind!r} is not supported: use a model with default, linear or llama3")


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """The inverse of `read_rope`."""
    settings: dict[str, Any] = {"rope_type": rope.kind, "rope_theta": rope.theta}
    if rope.kind != "default":
        settings["factor"] = rope.factor
    if rope.kind == "llama3":
        settings["low_freq_factor"] = rope.low_freq_factor
        settings["high_freq_factor"] = rope.high_freq_factor
        settings["original_max_position_embeddings"] = rope.original_length
    return settings


def read_llama_like(hf: Any, family: str) -> dict[str, Any]:
    """The fields of `DecoderConfig` that all families with this layer read in the same way."""
    head_dim = getattr(hf, "head_dim", None) or hf.hidden_size // hf.num_attention_heads
    return {
        "family": family,
        "vocab_size": hf.vocab_size,
        "width": hf.hidden_size,
        "layers": hf.num_hidden_layers,
        "heads": hf.num_attention_heads,
        "kv_heads": hf.num_key_value_heads or hf.num_attention_heads,
        "head_dim": head_dim,
        "ffn_width": hf.intermediate_size,
        "max_length": hf.max_position_embeddings,
        "norm_eps": float(hf.rms_norm_eps),
        "activation": activation_named(hf.hidden_act),
        "tied": bool(hf.tie_word_embeddings),
        "rope": read_rope(hf),
        "bos_token_id": hf.bos_token_id,
        "eos_token_ids": token_ids(hf.eos_token_id),
        "pad_token_id": hf.pad_token_id,
    }


def write_llama_like(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `read_llama_like`."""
    assert config.rope is not None
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_width,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.activation, config.activation),
        "tie_word_embeddings": config.tied,
        "rope_parameters": write_rope(config.rope),
        **written_token_ids(config),
    }


def read_windows(hf: Any) -> tuple[int, ...]:
    """Attention windows of a config that names the type of each layer (Qwen)."""
    windows = tuple(hf.sliding_window if kind == "sliding_attention" else 0 for kind in hf.layer_types)
    return windows if any(windows) else ()


def write_windows(config: DecoderConfig) -> dict[str, Any]:
    """The inverse of `read_windows`."""
    if not config.windows:
        return {"use_sliding_window": False}
    kinds = ["sliding_attention" if window else "full_attention" for window in config.windows]
    return {"use_sliding_window": True, "sliding_window": max(config.windows), "layer_types": kinds}


def llama_weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """Every parameter of a model with this layer, in the order of the forward pass."""
    biased = {
        "q_proj": config.qkv_bias,
        "k_proj": config.qkv_bias,
        "v_proj": config.qkv_bias,
        "o_proj": config.out_bias,
    }
    biased |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), config.mlp_bias)
    weights = [Weight(("embed",), "model.embed_tokens.weight")]
    weights += [_norm("input_layernorm")]
    for name, bias in biased.items():
        part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        weights.append(
            Weight(("layers", part, name, "kernel"), f"model.layers.{{}}.{part}.{name}.weight", transposed=True)
        )
        if bias:
            weights.append(Weight(("layers", part, name, "bias"), f"model.layers.{{}}.{part}.{name}.bias"))
    if config.qk_norm:
        weights += [_norm("self_attn", "q_norm"), _norm("self_attn", "k_norm")]
    weights += [_norm("post_attention_layernorm"), Weight(("norm", "scale"), "model.norm.weight")]
    if not config.tied:
        weights.append(Weight(("lm_head",), "lm_head.weight"))
    return tuple(weights)


def _norm(*path: str) -> Weight:
    return Weight(("layers", *path, "scale"), f"model.layers.{{}}.{'.'.join(path)}.weight")


def _read(hf: Any) -> DecoderConfig:
    bias = bool(hf.attention_bias)
    return DecoderConfig(**read_llama_like(hf, "llama"), qkv_bias=bias, out_bias=bias, mlp_bias=bool(hf.mlp_bias))


def _write(config: DecoderConfig) -> dict[str, Any]:
    return write_llama_like(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}


LLAMA = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    config_class="LlamaConfig",
    block=LlamaBlock,
    read=_read,
    write=_write,
    weights=llama_weights,
    optional_prefix="model.",
    ignored=("rotary_emb.inv_freq",),
    axes={
        "embed": ("vocab", "width"),
        "lm_head": ("vocab", "width"),
        "q_proj": ("width", "heads"),
        "k_proj": ("width", "kv_heads"),
        "v_proj": ("width", "kv_heads"),
        "o_proj": ("heads", "width"),
        "gate_proj": ("width", "ffn"),
        "up_proj": ("width", "ffn"),
        "down_proj": ("ffn", "width"),
    },
)
