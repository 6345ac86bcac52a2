"""Parts that every family is built from: linear maps with optional adapters, norms, rotary positions, attention.

A module holds the arrays of all layers stacked on a leading axis, [L, ...]; inside the scan over layers it is merged
again from one slice, so the same `__call__` never sees that axis. B is batch, T tokens, N heads, H head size.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from greats_jax.models.config import RopeConfig

INIT_STD = 0.02  # of random weights, as in GPT-2 and the Llama family


class Dropout(NamedTuple):
    """Randomness of one forward pass.

    Attributes:
      key: PRNG key, typed or raw u32[2].
      deterministic: traced flag; where it is true nothing is dropped. None means false.
    """

    key: jax.Array
    deterministic: jax.Array | None = None

    def fold(self, index: int | jax.Array) -> "Dropout":
        """An independent stream for part `index`."""
        return self._replace(key=jax.random.fold_in(self.key, index))

    def __call__(self, x: jax.Array, rate: float) -> jax.Array:
        """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate)."""
        kept = jax.random.bernoulli(self.key, 1.0 - rate, x.shape)
        dropped = jnp.where(kept, x / (1.0 - rate), 0).astype(x.dtype)
        return dropped if self.deterministic is None else jnp.where(self.deterministic, x, dropped)


class LoraParam(nnx.Param):
    """A parameter of an adapter; where a model has any, only these train."""


class LowRank(nnx.Module):
    """The update x A B · alpha / rank of one linear map (Hu et al., 2021).

    A starts uniform in ±1/sqrt(d_in), as PEFT does, and B at zero, so a fresh adapter changes nothing.
    """

    def __init__(
        self, d_in: int, d_out: int, *, layers: int, rank: int, alpha: float, rate: float, index: int, dtype, key
    ):
        bound = 1.0 / math.sqrt(d_in)
        self.a = LoraParam(jax.random.uniform(key, (layers, d_in, rank), jnp.float32, -bound, bound).astype(dtype))
        self.b = LoraParam(jnp.zeros((layers, rank, d_out), dtype))
        self.scale = alpha / rank
        self.rate = rate
        self.index = index  # tells the maps of one layer apart when dropout draws

    def __call__(self, x: jax.Array, dropout: Dropout | None) -> jax.Array:
        """[B, T, d_in] -> [B, T, d_out]."""
        if dropout is not None and self.rate > 0.0:
            x = dropout.fold(self.index)(x, self.rate)
        return (x @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype) * self.scale


class Linear(nnx.Module):
    """x W + b, W as [d_in, d_out], plus a low-rank adapter where one was added."""

    def __init__(self, d_in: int, d_out: int, *, layers: int, bias: bool, dtype, key: jax.Array):
        kernel = INIT_STD * jax.random.normal(key, (layers, d_in, d_out), jnp.float32)
        self.kernel = nnx.Param(kernel.astype(dtype))
        self.bias = nnx.data(nnx.Param(jnp.zeros((layers, d_out), dtype)) if bias else None)
        self.lora: LowRank | None = nnx.data(None)

    def __call__(self, x: jax.Array, dropout: Dropout | None = None) -> jax.Array:
        """[B, T, d_in] -> [B, T, d_out] in the dtype of x."""
        y = x @ dense(self.kernel[...]).astype(x.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.lora is not None:
            y = y + self.lora(x, dropout)
        return y


def dense(kernel: Any) -> jax.Array:
    """A kernel as a matrix; one that is quantised (see `quantized`) is turned back."""
    if not hasattr(kernel, "qvalue"):
        return kernel
    import qwix

    return qwix.dequantize(kernel)


class RMSNorm(nnx.Module):
    """x / rms(x) · scale over the last axis, computed in float32."""

    def __init__(self, shape: tuple[int, ...], eps: float, dtype):
        self.scale = nnx.Param(jnp.ones(shape, dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] -> [..., d] in the dtype of x."""
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean) / std · scale + bias over the last axis, computed in float32."""

    def __init__(self, shape: tuple[int, ...], eps: float, dtype):
        self.scale = nnx.Param(jnp.ones(shape, dtype))
        self.bias = nnx.Param(jnp.zeros(shape, dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., d] -> [..., d] in the dtype of x."""
        x32 = x.astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return x32.astype(x.dtype) * self.scale[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


def activate(name: str, x: jax.Array) -> jax.Array:
    """Applies the activation called `name` (see `config.ACTIVATIONS`)."""
    match name:
        case "silu":
            return jax.nn.silu(x)
        case "relu":
            return jax.nn.relu(x)
        case _:
            return jax.nn.gelu(x, approximate=name == "gelu_tanh")


def rotary_frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Angle per token of each pair of channels, f32[head_dim / 2], in radians.

    The llama3 rule stretches only wavelengths long against the original context: above `original_length /
    low_freq_factor` by `factor`, below `original_length / high_freq_factor` not at all, and linearly in between.
    """
    frequencies = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    elif rope.kind == "llama3":
        turns = rope.original_length * frequencies / (2 * math.pi)
        keep = np.clip((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0, 1.0)
        frequencies = keep * frequencies + (1 - keep) * frequencies / rope.factor
    return frequencies.astype(np.float32)


def rotate(x: jax.Array, positions: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Rotates channel i against channel i + H/2 by position · frequency, in float32.

    Args:
      x: [B, T, N, H].
      positions: i32[T] or i32[B, T].
      frequencies: f32[H / 2].
    """
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def causal_attention(q, k, v, key_mask: jax.Array | None, window: int | jax.Array) -> jax.Array:
    """Attention of each token to itself and those before it.

    Args:
      q: [B, T, N, H].
      k: [B, T, K, H]; K divides N.
      v: [B, T, K, H].
      key_mask: bool[B, T], true for tokens that may be attended to, or None for all.
      window: how many tokens, itself included, a token sees; 0 for all. May be traced (layers that differ).

    Returns:
      [B, T, N, H]. A row without any key to see gives finite, meaningless values.
    """
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if isinstance(window, int):
        local = (window - 1, 0) if window else None
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, local_window_size=local)
    t = jnp.arange(q.shape[1])
    near = (window == 0) | (t[:, None] - t[None, :] < window)
    mask = near[None, None] if mask is None else mask & near
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True)
