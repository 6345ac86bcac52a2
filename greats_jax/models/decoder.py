"""The decoder: embedding, a scan over stacked layers, a norm, and the head."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from greats_jax.models.config import DecoderConfig, LoraConfig, dtype_named
from greats_jax.models.families import family_named
from greats_jax.models.layers import INIT_STD, Dropout, LayerNorm, RMSNorm, causal_attention, rotary_frequencies, rotate
from greats_jax.models.sharding import gathered

# q [B, T, N, H], k and v [B, T, K, H], and what the scan hands to this layer -> mixed values [B, T, N, H], and what
# the layer keeps.
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


class Decoder(nnx.Module):
    """A causal language model of any family; `Decoder(config, key)` has random weights.

    The arrays of all layers are stacked, [L, ...], and the layers run under one `lax.scan`, so compile time does not
    grow with depth. A call is pure: it mutates nothing, so it can be traced by jit, grad, vmap, scan and checkpoint.
    """

    def __init__(self, config: DecoderConfig, key: jax.Array):
        family, dtype = family_named(config.family), dtype_named(config.dtype)
        embed_key, position_key, layer_key, head_key = jax.random.split(key, 4)

        def table(key, rows):
            return nnx.Param((INIT_STD * jax.random.normal(key, (rows, config.width), jnp.float32)).astype(dtype))

        self.config = config
        self.lora: LoraConfig | None = None  # set where adapters are added
        self.mesh: Mesh | None = None  # set where the arrays are placed on devices
        self.embed = table(embed_key, config.vocab_size)
        self.positions = nnx.data(table(position_key, config.max_length) if config.rope is None else None)
        self.layers = family.block(config, layer_key)
        norm = RMSNorm if config.rope is not None else LayerNorm
        self.norm = norm((config.width,), config.norm_eps, dtype)
        self.lm_head = nnx.data(None if config.tied else table(head_key, config.vocab_size))

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
        deterministic: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of the next token at every position.

        Args:
          input_ids: i32[B, T].
          attention_mask: bool or i32[B, T], 1 for real tokens, padding on the right; None when all are real.
          dropout_key: PRNG key for the dropout of adapters; None for none.
          deterministic: traced bool[]; where true the key is ignored. For batches that mix training and validation
            rows.

        Returns:
          f32[B, T, V]. Values at padding are finite and mean nothing.
        """
        return self.head(self.hidden(input_ids, attention_mask, dropout_key=dropout_key, deterministic=deterministic))

    def hidden(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
        deterministic: jax.Array | None = None,
    ) -> jax.Array:
        """Activations after the last norm, [B, T, d] in the compute dtype. Arguments as for the call."""
        x = self.embedded(input_ids, jnp.arange(input_ids.shape[1], dtype=jnp.int32))
        return self.norm(self.through(x, attention_mask, dropout_key=dropout_key, deterministic=deterministic))

    def through(
        self,
        x: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
        deterministic: jax.Array | None = None,
        first: int = 0,
    ) -> jax.Array:
        """Activations [B, T, d] after the layers that the model holds, before the last norm.

        Args:
          x: [B, T, d], embedded tokens or what an earlier part of the layers made of them.
          attention_mask: as for the call, like the other arguments.
          dropout_key: as for the call.
          deterministic: as for the call.
          first: number of the model's first layer, for a model that was cut (see `cut_layers`).
        """
        key_mask = None if attention_mask is None else attention_mask.astype(bool)
        positions = jnp.arange(x.shape[1], dtype=jnp.int32)
        windows = self.config.windows
        same = len(set(windows)) <= 1
        per_layer = None if same else jnp.asarray(windows, jnp.int32)[first : first + self.depth]
        static_window = windows[0] if same and windows else 0

        def attend(q, k, v, window):
            q, k = self.place(q, positions), self.place(k, positions)
            return causal_attention(q, k, v, key_mask, static_window if window is None else window), None

        dropout = None if dropout_key is None else Dropout(dropout_key, deterministic)
        return self._scan(x, attend, per_layer, dropout, first)[0]

    @property
    def depth(self) -> int:
        """Number of layers held: all, unless the model was cut."""
        return jax.tree.leaves(nnx.to_pure_dict(nnx.state(self.layers)))[0].shape[0]

    def head(self, hidden: jax.Array) -> jax.Array:
        """[B, T, d] -> f32[B, T, V]; the product is accumulated and returned in float32."""
        name, table = ("embed", self.embed) if self.lm_head is None else ("lm_head", self.lm_head)
        weights = self.gathered({name: table[...]})[name].astype(hidden.dtype)
        return jnp.einsum("btd,vd->btv", hidden, weights, preferred_element_type=jnp.float32)

    def embedded(self, input_ids: jax.Array, positions: jax.Array) -> jax.Array:
        """Token (and learned position) embeddings, [B, T, d]; ids outside the vocabulary give NaN, no wrong token."""
        table = self.gathered({"embed": self.embed[...]})["embed"]
        x = table.at[input_ids].get(mode="fill", fill_value=jnp.nan)
        if self.positions is not None:
            # Padding may reach past the last learned position; it gets that one, and no token attends to it.
            x = x + self.positions[...].at[positions].get(mode="clip")
        return x.astype(dtype_named(self.config.compute_dtype))

    def gathered(self, weights: Any) -> Any:
        """Weights as a layer computes with them: of those cut along `fsdp`, each device gets the whole.

        Without saying so the compiler may cut the activations like the weights and gather rows in every layer instead.
        """
        return weights if self.mesh is None else gathered(self.config, weights, self.mesh)

    def place(self, x: jax.Array, positions: jax.Array) -> jax.Array:
        """Rotates queries or keys [B, T, N, H] to their positions; nothing to do with learned positions."""
        rope = self.config.rope
        return x if rope is None else rotate(x, positions, rotary_frequencies(rope, self.config.head_dim))

    def run(self, x: jax.Array, attend: Attend, per_layer: Any = None) -> tuple[jax.Array, Any]:
        """All layers and the last norm.

        Args:
          x: [B, T, d].
          attend: the attention of one layer; decoding with a cache passes its own.
          per_layer: pytree with leading axis L, one slice of which is given to `attend` in each layer.

        Returns:
          [B, T, d], and what `attend` kept, stacked over layers.
        """
        x, kept = self._scan(x, attend, per_layer, None, 0)
        return self.norm(x), kept

    def _scan(
        self, x: jax.Array, attend: Attend, per_layer: Any, dropout: Dropout | None, first: int
    ) -> tuple[jax.Array, Any]:
        """The layers; dropout is folded with the number of each."""
        graphdef, stacked = nnx.split(self.layers)

        def body(x, inputs):
            weights, index, extra = inputs
            weights = self.gathered(weights)
            # copy=True: modules merged from outer tracers must not be shared with the traced body.
            block = nnx.merge(graphdef, weights, copy=True)
            return block(x, partial(_with_extra, attend, extra), None if dropout is None else dropout.fold(index))

        if self.config.remat != "none":
            policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.config.remat == "dots" else None
            body = jax.checkpoint(body, policy=policy, prevent_cse=False)
        indices = jnp.arange(first, first + self.depth, dtype=jnp.int32)
        return jax.lax.scan(body, x, (nnx.to_pure_dict(stacked), indices, per_layer))


def _with_extra(attend: Attend, extra: Any, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, Any]:
    return attend(q, k, v, extra)
