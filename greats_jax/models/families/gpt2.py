"""GPT-2: learned positions, LayerNorm, one fused projection for queries, keys and values, biases everywhere."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from greats_jax.errors import ModelError
from greats_jax.models.config import DecoderConfig, dtype_named
from greats_jax.models.families.family import Family, Weight, activation_named, token_ids, written_token_ids
from greats_jax.models.layers import Dropout, LayerNorm, Linear, activate


class FusedAttention(nnx.Module):
    """Multi-head attention; the names are those of the checkpoint, and of PEFT's targets."""

    def __init__(self, config: DecoderConfig, key: jax.Array):
        in_key, out_key = jax.random.split(key)
        shared = {"layers": config.layers, "dtype": dtype_named(config.dtype)}
        self.c_attn = Linear(config.width, 3 * config.width, bias=config.qkv_bias, key=in_key, **shared)
        self.c_proj = Linear(config.width, config.width, bias=config.out_bias, key=out_key, **shared)
        self.head_dim = config.head_dim

    def __call__(self, x: jax.Array, attend, dropout: Dropout | None):
        """[B, T, d] -> [B, T, d], and what `attend` keeps."""
        q, k, v = (
            part.reshape(*part.shape[:-1], -1, self.head_dim) for part in jnp.split(self.c_attn(x, dropout), 3, axis=-1)
        )
        mixed, kept = attend(q, k, v)
        return self.c_proj(mixed.reshape(x.shape), dropout), kept


class MLP(nnx.Module):
    """c_proj(act(c_fc(x)))."""

    def __init__(self, config: DecoderConfig, key: jax.Array):
        in_key, out_key = jax.random.split(key)
        shared = {"layers": config.layers, "bias": config.mlp_bias, "dtype": dtype_named(config.dtype)}
        self.c_fc = Linear(config.width, config.ffn_width, key=in_key, **shared)
        self.c_proj = Linear(config.ffn_width, config.width, key=out_key, **shared)
        self.activation = config.activation

    def __call__(self, x: jax.Array, dropout: Dropout | None) -> jax.Array:
        """[B, T, d] -> [B, T, d]."""
        return self.c_proj(activate(self.activation, self.c_fc(x, dropout)), dropout)


class GPT2Block(nnx.Module):
    """One layer, norms before attention and before the feed-forward part."""

    def __init__(self, config: DecoderConfig, key: jax.Array):
        attention_key, mlp_key = jax.random.split(key)
        dtype = dtype_named(config.dtype)
        self.ln_1 = LayerNorm((config.layers, config.width), config.norm_eps, dtype)
        self.attn = FusedAttention(config, attention_key)
        self.ln_2 = LayerNorm((config.layers, config.width), config.norm_eps, dtype)
        self.mlp = MLP(config, mlp_key)

    def __call__(self, x: jax.Array, attend, dropout: Dropout | None = None):
        """[B, T, d] -> [B, T, d], and what `attend` keeps."""
        mixed, kept = self.attn(self.ln_1(x), attend, dropout)
        x = x + mixed
        return x + self.mlp(self.ln_2(x), dropout), kept


def _read(hf: Any) -> DecoderConfig:
    if not hf.scale_attn_weights or hf.scale_attn_by_inverse_layer_idx or hf.add_cross_attention:
        raise ModelError(
            "config.json: GPT-2 with unscaled or layer-scaled attention, or with cross attention, is not supported"
        )
    return DecoderConfig(
        family="gpt2",
        vocab_size=hf.vocab_size,
        width=hf.n_embd,
        layers=hf.n_layer,
        heads=hf.n_head,
        kv_heads=hf.n_head,
        head_dim=hf.n_embd // hf.n_head,
        ffn_width=hf.n_inner or 4 * hf.n_embd,
        max_length=hf.n_positions,
        norm_eps=float(hf.layer_norm_epsilon),
        activation=activation_named(hf.activation_function),
        tied=bool(hf.tie_word_embeddings),
        rope=None,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        bos_token_id=hf.bos_token_id,
        eos_token_ids=token_ids(hf.eos_token_id),
        pad_token_id=hf.pad_token_id,
    )


def _write(config: DecoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.ffn_width,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": {"gelu_tanh": "gelu_new"}.get(config.activation, config.activation),
        "tie_word_embeddings": config.tied,
        **written_token_ids(config),
    }


def _weights(config: DecoderConfig) -> tuple[Weight, ...]:
    weights = [Weight(("embed",), "transformer.wte.weight"), Weight(("positions",), "transformer.wpe.weight")]
    for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        matrix = "scale" if part.startswith("ln") else "kernel"  # Conv1D keeps [d_in, d_out], as we do
        path = ("layers", *part.split("."))
        weights.append(Weight((*path, matrix), f"transformer.h.{{}}.{part}.weight"))
        weights.append(Weight((*path, "bias"), f"transformer.h.{{}}.{part}.bias"))
    weights.append(Weight(("norm", "scale"), "transformer.ln_f.weight"))
    weights.append(Weight(("norm", "bias"), "transformer.ln_f.bias"))
    if not config.tied:
        weights.append(Weight(("lm_head",), "lm_head.weight"))
    return tuple(weights)


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    config_class="GPT2Config",
    block=GPT2Block,
    read=_read,
    write=_write,
    weights=_weights,
    optional_prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias"),
    axes={
        "embed": ("vocab", "width"),
        "positions": (None, "width"),
        "lm_head": ("vocab", "width"),
        "c_attn": ("width", None),  # queries, keys and values side by side: a cut would not run between heads
        "attn.c_proj": ("heads", "width"),
        "c_fc": ("width", "ffn"),
        "mlp.c_proj": ("ffn", "width"),
    },
)
