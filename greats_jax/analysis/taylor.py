"""Taylor expansion of a loss along the steps that subsets of examples would make. Pure functions over pytrees.

With v and H, gradient and Hessian of the loss L at the parameters theta, a step u changes the loss by

    L(theta + u) - L(theta)  =  <u, v> + u'Hu / 2 + ...

Gradient descent on examples with the weights w (1/k for those of a subset of k) makes u = -eta sum_i w_i g_i, so that

    -eta sum_i w_i <g_i, v>  +  eta^2 / 2 sum_ij w_i w_j g_i'H g_j

needs n slopes and n x n curvatures, however many subsets are compared. GREATS puts the Gram matrix `<g_i, g_j>` in the
place of the curvatures (H = I).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from greats_jax.ghost import PerExampleGrads
from greats_jax.training.state import floating, with_floating

Array = jax.Array
PyTree = Any
Loss = Callable[[PyTree], Array]


def hessian_times(loss: Loss, params: PyTree, direction: PyTree) -> PyTree:
    """`H d` by forward mode over the gradient (`jvp` of `grad`), like the floating parameters.

    Cost: about two backward passes; the Hessian itself is never formed.

    Args:
        loss: `loss(params) -> f32[]`.
        params: pytree; integer and boolean leaves are constants.
        direction: d, like the floating parameters; taken in their dtypes.
    """
    trained = floating(params)
    slope_of = jax.grad(lambda t: loss(with_floating(params, t)))
    return jax.jvp(slope_of, (trained,), (_cast_like(direction, trained),))[1]


def curvatures(loss: Loss, params: PyTree, grads: PerExampleGrads) -> Array:
    """Curvature of `loss` between the gradients of examples, `g_i'H g_j`: f32[n, n].

    Cost: n Hessian-vector products, one after another, each met with all examples at once. Memory: some copies of the
    parameters; no gradient but one is ever written out.

    Args:
        loss: `loss(params) -> f32[]`.
        params: pytree; integer and boolean leaves are constants.
        grads: per-example gradients, with respect to `params`.
    """

    def column(weights: Array) -> Array:
        gradient = floating(grads.weighted_sum(weights))
        return grads.dot(with_floating(params, hessian_times(loss, params, gradient)))

    columns = lax.map(column, jnp.eye(grads.n))
    return (columns + columns.T) / 2  # equal but for rounding


def predicted(slopes: Array, curvature: Array | None, weights: Array, rate: Array | float) -> Array:
    """Changes of the loss that gradient descent is predicted to make: f[s].

    Args:
        slopes: `<g_i, v>`, f[n].
        curvature: f[n, n] of `curvatures`, or the Gram matrix; None for the first order alone.
        weights: f[s, n], those of each subset.
        rate: eta.
    """
    first = -rate * (weights @ slopes)
    return first if curvature is None else first + rate**2 / 2 * ((weights @ curvature) * weights).sum(1)


def unit_update(optimizer: optax.GradientTransformation, opt_state: PyTree, params: PyTree, gradient: PyTree) -> PyTree:
    """The update that an optimizer would make of a gradient, like the floating parameters.

    Args:
        optimizer: any optax transformation; of rate 1, to go along its update at any rate with `loss_along`.
        opt_state: its state; not changed.
        params: pytree.
        gradient: like the floating parameters.
    """
    trained = floating(params)
    return optimizer.update(_cast_like(gradient, trained), opt_state, trained)[0]


def loss_along(loss: Loss, params: PyTree, direction: PyTree, rate: Array | float) -> Array:
    """The loss after a step: f32[], `loss(params + rate * direction)`, with the parameters in their own dtypes."""

    def moved(p: Array, d: Array) -> Array:
        wide = jnp.promote_types(p.dtype, jnp.float32)
        return (p.astype(wide) + rate * d.astype(wide)).astype(p.dtype)

    return loss(with_floating(params, jax.tree.map(moved, floating(params), direction)))


def inner(a: PyTree, b: PyTree) -> Array:
    """Inner product of two pytrees, accumulated in float32 or wider: f32[]."""

    def product(x: Array, y: Array) -> Array:
        wide = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
        return jnp.vdot(x.astype(wide), y.astype(wide))

    products = jax.tree.map(product, a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros(()))


def _cast_like(tree: PyTree, like: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: x.astype(y.dtype), tree, like)
