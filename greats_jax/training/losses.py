"""The language-model loss of one example, and the rows it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from greats_jax.training.logit_summaries import summarise
from greats_jax.training.placement import Placement
from greats_jax.training.split_loss import SplitLoss

Array = jax.Array
PyTree = Any


class LanguageExample(NamedTuple):
    """One tokenised example; with a leading axis, a batch of them.

    Attributes:
        input_ids: i32[t].
        attention_mask: bool[t], True for real tokens (padding on the right).
        label_mask: bool[t], True where a token is to be predicted from those before it.
        dropout_key: u32[2], key data of this row's dropout.
        deterministic: bool[], no dropout in this row.
        extras: what rules need to know of the row beside its tokens, by name; the loss does not look at it.
    """

    input_ids: Array
    attention_mask: Array
    label_mask: Array
    dropout_key: Array
    deterministic: Array
    extras: Any = ()


class _Tokens(Protocol):
    @property
    def input_ids(self) -> Any: ...
    @property
    def attention_mask(self) -> Any: ...
    @property
    def label_mask(self) -> Any: ...


def language_rows(batch: _Tokens, key: Array | None = None, extras: Any = ()) -> LanguageExample:
    """Rows for the loss: with a key, one dropout key per row; without, rows that see no dropout.

    Args:
        batch: input_ids i32[b, t], attention_mask bool[b, t], label_mask bool[b, t], NumPy arrays.
        key: PRNG key of this step.
        extras: of `LanguageExample`, with the rows on axis 0.

    Returns:
        Rows that stay on the host, but for the keys that a key gives: making them without waits for no device.
    """
    b = len(batch.input_ids)
    keys: Any = np.zeros((b, 2), np.uint32) if key is None else jax.random.key_data(jax.random.split(key, b))
    ids: Any = np.asarray(batch.input_ids)
    real: Any = np.asarray(batch.attention_mask, bool)
    labels: Any = np.asarray(batch.label_mask, bool)
    deterministic: Any = np.full(b, key is None)
    return LanguageExample(ids, real, labels, keys, deterministic, extras)


def language_model_loss(
    graphdef: Any, combine: Callable[[Any, PyTree, PyTree], Any], dropout: bool = False
) -> Callable[..., Array]:
    """Build `loss_fn(params, frozen, example)`: mean cross-entropy over the example's label tokens, in nats per token.

    The frozen weights stay an argument, so that they are never constants of a compiled program. An example without
    labels has loss 0 (mark it with `has_labels`).

    Args:
        graphdef: static part of the model, from `models.partition`.
        combine: `models.combine`.
        dropout: whether the model draws dropout masks at all.
    """
    logits_of = _logits(graphdef, combine, dropout)

    def loss_fn(params: PyTree, frozen: PyTree, example: LanguageExample) -> Array:
        return masked_mean_nll(logits_of(params, frozen, example), example.input_ids, example.label_mask)

    return loss_fn


def summarised_language_model_loss(
    graphdef: Any, combine: Callable[[Any, PyTree, PyTree], Any], dropout: bool = False
) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The loss of `language_model_loss`, with `logit_summaries.summarise` of the logits as its auxiliary output."""
    logits_of = _logits(graphdef, combine, dropout)

    def loss_fn(params: PyTree, frozen: PyTree, example: LanguageExample) -> tuple[Array, dict[str, Array]]:
        logits = logits_of(params, frozen, example)
        loss = masked_mean_nll(logits, example.input_ids, example.label_mask)
        # The prediction of token t stands at position t - 1.
        predicts = jnp.append(example.label_mask[1:], False)
        return loss, summarise(lax.stop_gradient(logits), predicts)

    return loss_fn


def _logits(graphdef: Any, combine: Callable[[Any, PyTree, PyTree], Any], dropout: bool) -> Callable[..., Array]:
    """`logits(params, frozen, example) -> f32[t, v]`."""

    def logits(params: PyTree, frozen: PyTree, example: LanguageExample) -> Array:
        model = combine(graphdef, params, frozen)
        key = jax.random.wrap_key_data(example.dropout_key) if dropout else None
        deterministic = example.deterministic if dropout else None
        return model(
            example.input_ids[None], example.attention_mask[None], dropout_key=key, deterministic=deterministic
        )[0]

    return logits


def split_language_model_loss(
    graphdef: Any,
    combine: Callable[[Any, PyTree, PyTree], Any],
    cut: Callable[[PyTree], tuple[PyTree, PyTree]],
    at: int,
    dropout: bool = False,
) -> SplitLoss:
    """The loss of `language_model_loss` cut after `at` layers: the upper layers and the head give the scores.

    The backward pass of rows that are not kept stops at the cut.

    Args:
        graphdef: static part of a decoder, from `models.partition`.
        combine: `models.combine`.
        cut: `models.cut_layers` at that layer, e.g. `lambda tree: cut_layers(tree, 4, tied=True)`.
        at: number of layers below the cut.
        dropout: whether the model draws dropout masks at all.
    """

    def settings(example: LanguageExample) -> tuple[Array | None, Array | None]:
        if not dropout:
            return None, None
        return jax.random.wrap_key_data(example.dropout_key), example.deterministic

    def trunk(lower: PyTree, frozen: PyTree, example: LanguageExample) -> Array:
        model = combine(graphdef, lower, cut(frozen)[0])
        key, fixed = settings(example)
        x = model.embedded(example.input_ids[None], jnp.arange(len(example.input_ids), dtype=jnp.int32))
        return model.through(x, example.attention_mask[None], dropout_key=key, deterministic=fixed)[0]

    def head(upper: PyTree, frozen: PyTree, x: Array, example: LanguageExample) -> Array:
        model = combine(graphdef, upper, cut(frozen)[1])
        key, fixed = settings(example)
        x = model.through(x[None], example.attention_mask[None], dropout_key=key, deterministic=fixed, first=at)
        return masked_mean_nll(model.head(model.norm(x))[0], example.input_ids, example.label_mask)

    return SplitLoss(trunk, head, cut)


def masked_mean_nll(logits: Array, input_ids: Array, label_mask: Array) -> Array:
    """Mean negative log-likelihood of the label tokens: f32[], nats per token; 0 when there are none.

    Args:
        logits: f32[t, v]; position i predicts token i + 1.
        input_ids: i32[t].
        label_mask: bool[t].
    """
    labels = label_mask[1:]
    nll = optax.softmax_cross_entropy_with_integer_labels(logits[:-1].astype(jnp.float32), input_ids[1:])
    return jnp.sum(jnp.where(labels, nll, 0.0)) / jnp.maximum(labels.sum(), 1)


def has_labels(example: LanguageExample) -> Array:
    """bool[]: whether an example has a token to learn from (for the step's `is_valid`)."""
    return example.label_mask[1:].any()


def label_count(example: LanguageExample) -> Array:
    """i32[]: number of label tokens (for the step's `row_weight`, which makes the update a mean over tokens)."""
    return example.label_mask[1:].sum()


def make_evaluator(
    loss_fn: Callable[..., Array], placement: Placement | None = None
) -> Callable[[PyTree, PyTree, PyTree], Array]:
    """Build `evaluate(params, frozen, rows) -> f32[b]`: the loss of each row, forward only, jitted.

    Args:
        loss_fn: loss of one example.
        placement: where arrays live on a mesh; every process then gets all losses.
    """
    everywhere = None if placement is None else placement.everywhere
    return jax.jit(jax.vmap(loss_fn, in_axes=(None, None, 0)), out_shardings=everywhere)
