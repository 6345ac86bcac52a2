"""A loss in two parts, so that the backward pass of dropped rows stops half-way.

All rows run forward through the trunk and the head, and backward through the head only, whose parameters give the
scores. For the kept rows the backward pass is then resumed through the trunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from greats_jax.ghost import value_and_per_example_grads
from greats_jax.training.state import floating, with_floating
from greats_jax.training.weighting import weigh

Array = jax.Array
PyTree = Any


def _as_is(params: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
    return params


class SplitLoss(NamedTuple):
    """A loss of one example as `head(upper, frozen, trunk(lower, frozen, example), example)`.

    Attributes:
        trunk: `trunk(lower, frozen, example) -> activations`, a pytree of arrays.
        head: `head(upper, frozen, activations, example) -> scalar`, or `(scalar, aux)`.
        split: `split(params) -> (lower, upper)`, linear in the parameters: it picks leaves or slices of them, and one
            leaf may be in both parts. Left out, the parameters are that pair.
    """

    trunk: Callable[..., PyTree]
    head: Callable[..., Any]
    split: Callable[[PyTree], tuple[PyTree, PyTree]] = _as_is

    def __call__(self, params: PyTree, frozen: PyTree, example: PyTree) -> Any:
        """The loss of one example."""
        lower, upper = self.split(params)
        return self.head(upper, frozen, self.trunk(lower, frozen, example), example)


def make_split_backward(loss: SplitLoss, has_aux: bool, leaves: Callable[[str], bool] | None) -> Callable[..., tuple]:
    """Build `backward(params, frozen, rows)`, which returns the fields of `one_pass.Backward`.

    Args:
        loss: the loss in two parts.
        has_aux: whether its head returns auxiliary outputs.
        leaves: which of the head's parameters give scores, by their path in `upper`; None for all.
    """

    def head_loss(tapped: dict[str, PyTree], frozen: PyTree, row: tuple[PyTree, PyTree]) -> Any:
        example, activations = row
        # A parameter that is added to the activations has their gradient, row by row.
        moved = jax.tree.map(jnp.add, floating(activations), tapped["tap"])
        return loss.head(tapped["upper"], frozen, with_floating(activations, moved), example)

    transform = value_and_per_example_grads(head_loss, has_aux=has_aux)

    def backward(params: PyTree, frozen: PyTree, rows: PyTree) -> tuple:
        (lower, upper), to_parts = loss.split(params), _transpose_of(loss.split, params)

        def run_trunk(trained: PyTree, some: PyTree) -> PyTree:
            trunk = jax.vmap(loss.trunk, in_axes=(None, None, 0))
            return trunk(with_floating(lower, trained), frozen, some)

        activations, resume = resumable(run_trunk, floating(lower), rows)
        tap = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), floating(activations))
        losses, grads = transform({"tap": tap, "upper": upper}, frozen, (rows, activations))
        losses, aux = losses if has_aux else (losses, None)

        def update(indices: Array, shares: Array) -> PyTree:
            kept = grads[indices].weighted_sum(shares)
            arriving = [x.materialize() for path, x in grads[indices].by_leaf().items() if path.startswith("['tap']")]
            weighted = jax.tree.unflatten(jax.tree.structure(tap), [weigh(x, shares) for x in arriving])
            return to_parts(resume(indices, weighted), floating(kept["upper"]))

        return (
            losses,
            aux,
            grads.only(lambda path: _scores(path, leaves)),
            update,
            lambda direction: to_parts(jax.tree.map(jnp.zeros_like, floating(lower)), floating(direction["upper"])),
            lambda direction: {"tap": tap, "upper": loss.split(with_floating(params, direction))[1]},
        )

    return backward


def _scores(path: str, leaves: Callable[[str], bool] | None) -> bool:
    return path.startswith("['upper']") and (leaves is None or leaves(path.removeprefix("['upper']")))


def _transpose_of(split: Callable[[PyTree], tuple[PyTree, PyTree]], params: PyTree) -> Callable[..., PyTree]:
    """From gradients of the two parts (floating leaves) to that of all parameters: a shared leaf gets the sum."""

    def parts(trained: PyTree) -> tuple[PyTree, PyTree]:
        lower, upper = split(with_floating(params, trained))
        return floating(lower), floating(upper)

    _, pull = jax.vjp(parts, floating(params))

    def transpose(lower: PyTree, upper: PyTree) -> PyTree:
        like = jax.eval_shape(parts, floating(params))
        return pull(jax.tree.map(lambda g, x: g.astype(x.dtype), (lower, upper), like))[0]

    return transpose


def resumable(run: Callable[[PyTree, PyTree], PyTree], trained: PyTree, rows: PyTree) -> tuple[PyTree, Callable]:
    """Run forward over all rows, and be ready to run backward over some of them.

    What the backward pass will read is an array for all rows; those of the kept rows are taken out of it. Which axis
    holds the rows shows when the same function is traced, not run, for another number of rows.

    Args:
        run: `run(trained, rows) -> outputs`, every output with the rows on axis 0.
        trained: parameters to differentiate.
        rows: batch of b rows.

    Returns:
        The outputs, and `resume(indices, cotangents) -> gradient of trained`: indices i32[k], cotangents of the
        floating outputs of those rows. Cost: a backward pass over k rows and a copy of what it reads; if the rows
        cannot be taken out, also their forward pass again.
    """
    outputs, pull = jax.vjp(lambda trained: run(trained, rows), trained)
    stored = jax.tree.leaves(pull)

    def traced(count: int) -> tuple[list[Any], Any]:
        some = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype), rows)
        return jax.tree.flatten(jax.eval_shape(lambda some: jax.vjp(lambda t: run(t, some), trained)[1], some))

    def resume(indices: Array, cotangents: PyTree) -> PyTree:
        b = len(jax.tree.leaves(rows)[0])
        (other, _), (_, structure) = traced(b + 1), traced(len(indices))
        axes = [_row_axis(x.shape, y.shape, b) for x, y in zip(stored, other, strict=False)]
        known = [axis for axis in axes if axis is not None]
        if not len(stored) == len(other) == len(known) == structure.num_leaves:
            some = jax.tree.map(lambda x: jnp.take(x, indices, axis=0), rows)
            again, pull_kept = jax.vjp(lambda trained: run(trained, some), trained)
            return pull_kept(_cotangents(again, cotangents))[0]
        kept = [x if axis < 0 else jnp.take(x, indices, axis=axis) for x, axis in zip(stored, known, strict=True)]
        some_outputs = jax.tree.map(lambda x: jnp.take(x, indices, axis=0), outputs)
        return jax.tree.unflatten(structure, kept)(_cotangents(some_outputs, cotangents))[0]

    return outputs, resume


def _row_axis(shape: tuple[int, ...], other: tuple[int, ...], b: int) -> int | None:
    """The axis that grew with the number of rows; -1 if none did, None if it is not plainly one axis of rows."""
    if len(shape) != len(other):
        return None
    grown = [i for i, (x, y) in enumerate(zip(shape, other, strict=True)) if x != y]
    if not grown:
        return -1
    return grown[0] if len(grown) == 1 and (shape[grown[0]], other[grown[0]]) == (b, b + 1) else None


def _cotangents(outputs: PyTree, floats: PyTree) -> PyTree:
    """Cotangents of all outputs: those given, and none for integers."""
    given = iter(jax.tree.leaves(floats))

    def cotangent(x: Array) -> Array:
        if jnp.issubdtype(x.dtype, jnp.floating):
            return next(given).astype(x.dtype)
        return jnp.zeros(x.shape, jax.dtypes.float0)

    return jax.tree.map(cotangent, outputs)
