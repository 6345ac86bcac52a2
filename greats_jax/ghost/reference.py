"""Slow, obvious implementations: per-example gradients by `vmap(grad)`, directional products by `jvp`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from greats_jax.ghost.ragged import let_ragged_dot_be_mapped

Array = jax.Array
PyTree = Any


def per_example_grads(loss_fn: Callable[..., Any], *args: PyTree) -> PyTree:
    """Gradients of every example with respect to the first argument: a pytree of `[n, ...]`.

    An integer or boolean leaf is a constant of the loss: its gradients are zeros of its own dtype.
    Memory: n times the parameters.
    """
    let_ragged_dot_be_mapped()
    axes = (None,) * (len(args) - 1) + (0,)
    n = jax.tree.leaves(args[-1])[0].shape[0]
    floats, join = _floating(args[0])

    def loss(floats: list[Array], *rest: PyTree) -> Array:
        return loss_fn(join(floats), *rest)

    grads = jax.vmap(jax.grad(loss), in_axes=axes)(floats, *args[1:])
    return join(grads, lambda leaf: jnp.zeros((n, *jnp.shape(leaf)), jnp.result_type(leaf)))


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))


def _floating(tree: PyTree) -> tuple[list[Array], Callable[..., PyTree]]:
    """The floating leaves, and what puts them back beside the others (or beside a function of the others)."""
    leaves, treedef = jax.tree.flatten(tree)

    def join(floats: Sequence[Array], of_others: Callable[[Any], Any] = lambda leaf: leaf) -> PyTree:
        given = iter(floats)
        return treedef.unflatten([next(given) if _is_float(leaf) else of_others(leaf) for leaf in leaves])

    return [leaf for leaf in leaves if _is_float(leaf)], join


def gram(grads: PyTree) -> Array:
    """Inner products of all pairs of materialised gradients: f32[n, n]."""
    return cross(grads, grads)


def cross(grads: PyTree, others: PyTree) -> Array:
    """Inner products of two sets of materialised gradients: f32[n, m]."""

    def leaf(a: Array, b: Array) -> Array:
        left, right = (x.reshape(x.shape[0], -1).astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (a, b))
        return jnp.matmul(left, right.T, precision="highest")

    return jax.tree.reduce(jnp.add, jax.tree.map(leaf, grads, others))


def dot_by_jvp(loss_fn: Callable[..., Any], direction: PyTree, *args: PyTree) -> Array:
    """Inner products with a direction by forward mode: f32[n]. Matrix-free and exact for any loss.

    Leaves of the direction that meet an integer or boolean parameter are ignored.
    Cost: one forward pass with tangents, no stored activations.
    """
    let_ragged_dot_be_mapped()
    axes = (None,) * (len(args) - 2) + (0,)
    floats, join = _floating(args[0])

    def losses(floats: list[Array]) -> Array:
        params = join(floats)
        return jax.vmap(lambda *rest: loss_fn(params, *rest), in_axes=axes)(*args[1:])

    pairs = zip(jax.tree.leaves(args[0]), jax.tree.leaves(direction), strict=True)
    return jax.jvp(losses, (floats,), ([v for leaf, v in pairs if _is_float(leaf)],))[1]
