"""Slow, obvious implementations: per-example gradients by `vmap(grad)`, directional products by `jvp`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any


def per_example_grads(loss_fn: Callable[..., Any], *args: PyTree) -> PyTree:
    """Gradients of every example with respect to the first argument: a pytree of `[n, ...]`.

    Memory: n times the parameters.
    """
    axes = (None,) * (len(args) - 1) + (0,)
    return jax.vmap(jax.grad(loss_fn), in_axes=axes)(*args)


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

    Cost: one forward pass with tangents, no stored activations.
    """
    axes = (None,) * (len(args) - 2) + (0,)

    def losses(params: PyTree) -> Array:
        return jax.vmap(lambda *rest: loss_fn(params, *rest), in_axes=axes)(*args[1:])

    return jax.jvp(losses, (args[0],), (direction,))[1]
