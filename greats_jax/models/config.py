"""The shape of a decoder, independent of the file format it came from."""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp

from greats_jax.errors import ModelError

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
REMAT_POLICIES = ("none", "full", "dots")
MAX_LAYERS = 10_000
"""More is a damaged file, and lists with an entry for each layer would fill the memory before anyone noticed."""


def dtype_named(name: str, role: str = "dtype"):
    """Returns the JAX dtype called `name`.

    Args:
      name: "float32" or "bfloat16".
      role: what the dtype is for, named in the error.

    Raises:
      ModelError: if the name is not one of the two.
    """
    if name not in DTYPES:
        raise ModelError(f"{role} {name!r} is not supported: use one of {', '.join(DTYPES)}")
    return DTYPES[name]


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
      theta: base of the geometric series of wavelengths.
      kind: "default", "linear" (all frequencies divided by `factor`) or "llama3" (only the slow ones, with a ramp
        between).
      factor: by how much the context was stretched.
      low_freq_factor: llama3: wavelengths above `original_length / low_freq_factor` are fully stretched.
      high_freq_factor: llama3: wavelengths below `original_length / high_freq_factor` are left alone.
      original_length: llama3: context length, in tokens, before stretching.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al., 2021), in PEFT's terms.

    Attributes:
      rank: inner size of the update A B.
      alpha: the update is scaled by alpha / rank.
      dropout: probability with which each input of the adapter is dropped in training.
      targets: names of the linear maps that get an adapter, as PEFT matches them: "q_proj", or with what comes before
        it, "attn.c_proj"; "all-linear" for every one in the layers.
      dtype: dtype of A and B; float32 trains well beside a frozen base in bfloat16.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    dtype: str = "float32"

    def __post_init__(self):
        """Refuses settings that mean nothing."""
        if not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1:
            raise ModelError(f"lora rank is {self.rank!r}: it must be a whole number of at least 1")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ModelError(f"lora alpha is {self.alpha!r}: it must be a positive number")
        if not 0.0 <= self.dropout < 1.0:
            raise ModelError(f"lora dropout is {self.dropout!r}: it must be at least 0 and less than 1")
        if isinstance(self.targets, str) or not self.targets:
            raise ModelError(f"lora targets are {self.targets!r}: give the names of one or more linear maps")
        dtype_named(self.dtype, "lora dtype")


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that decides the computation of a decoder; hashable, so it is static under jit.

    Attributes:
      family: name of the family ("llama", "mistral", "qwen2", "qwen3", "gpt2").
      vocab_size: number of tokens, V.
      width: size of the residual stream, d.
      layers: number of blocks, L.
      heads: number of query heads.
      kv_heads: number of key and value heads; divides `heads`.
      head_dim: size of one head.
      ffn_width: hidden size of the feed-forward part.
      max_length: longest sequence, in tokens, that the model was made for.
      norm_eps: added to the variance in every norm.
      activation: non-linearity of the feed-forward part, one of `ACTIVATIONS`.
      tied: whether the head is the embedding matrix (then there is one array for both).
      rope: rotary embedding, or None for learned absolute positions.
      windows: attention window in tokens per layer, 0 for unlimited; empty for all unlimited.
      qkv_bias: whether the query, key and value projections have a bias.
      out_bias: whether the attention output projection has a bias.
      mlp_bias: whether the feed-forward projections have a bias.
      qk_norm: whether queries and keys are normalised per head.
      bos_token_id: first token of a text, if any.
      eos_token_ids: tokens that end a text; generation stops there.
      pad_token_id: token used for padding, if any.
      dtype: dtype of the parameters.
      compute_dtype: dtype of the activations; norms, softmax and logits are float32 whatever it is.
      remat: what the backward pass recomputes: "none", "dots" (all but matrix products with weights) or "full".
    """

    family: str
    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    max_length: int = 2048
    norm_eps: float = 1e-5
    activation: str = "silu"
    tied: bool = False
    rope: RopeConfig | None = RopeConfig()
    windows: tuple[int, ...] = ()
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    dtype: str = "float32"
    compute_dtype: str = "float32"
    remat: str = "none"

    def __post_init__(self):
        """Refuses shapes that cannot be computed, before anything is allocated."""
        for field in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "ffn_width", "max_length"):
            value = getattr(self, field)
            if not isinstance(value, int) or not 1 <= value < 2**31:
                raise ModelError(f"model config: {field} is {value!r}; it must be a positive integer below 2**31")
        if self.layers > MAX_LAYERS:
            raise ModelError(f"model config: {self.layers} layers; a model has at most {MAX_LAYERS}")
        ids = (self.bos_token_id, self.pad_token_id, *self.eos_token_ids)
        if wrong := [value for value in ids if value is not None and not isinstance(value, int)]:
            raise ModelError(f"model config: {wrong[0]!r} is named as a special token; it must be a whole number")
        if self.heads % self.kv_heads:
            raise ModelError(
                f"model config: {self.heads} query heads cannot share {self.kv_heads} key/value heads evenly"
            )
        if not (isinstance(self.norm_eps, float) and math.isfinite(self.norm_eps) and self.norm_eps > 0):
            raise ModelError(f"model config: norm_eps is {self.norm_eps!r}; it must be a small positive number")
        if self.rope is not None and self.head_dim % 2:
            raise ModelError(f"model config: rotary positions need an even head_dim, not {self.head_dim}")
        if self.activation not in ACTIVATIONS:
            raise ModelError(f"model config: activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if self.windows and len(self.windows) != self.layers:
            raise ModelError(f"model config: {len(self.windows)} attention windows for {self.layers} layers")
        if self.remat not in REMAT_POLICIES:
            raise ModelError(f"remat {self.remat!r} is not supported: use one of {', '.join(REMAT_POLICIES)}")
        dtype_named(self.dtype, "dtype")
        dtype_named(self.compute_dtype, "compute_dtype")
