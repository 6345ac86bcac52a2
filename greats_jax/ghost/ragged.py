"""`lax.ragged_dot` under `vmap`, where JAX has no rule for weights that all examples share.

JAX maps a grouped matrix product only over axis 0 of all its arguments, and stops with NotImplementedError when the
experts of a mixture have no example axis. The rule added here takes over in that case alone: it sorts the rows of all
examples by group and multiplies them in one grouped product.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import batching

Array = jax.Array


@functools.cache
def let_ragged_dot_be_mapped() -> None:
    """Add the rule, once; JAX's own stays in charge of what it knows."""
    rows, experts, sizes = (jax.ShapeDtypeStruct(s, d) for s, d in (((2, 1), "f4"), ((1, 1, 1), "f4"), ((1,), "i4")))
    traced = jax.make_jaxpr(lax.ragged_dot)(rows, experts, sizes)
    primitive = traced.jaxpr.eqns[-1].primitive
    known = batching.fancy_primitive_batchers.get(primitive)
    if known is None or primitive.name != "ragged_dot_general":
        return

    def rule(axis: Any, args: tuple, dims: tuple, **params: Any) -> tuple[Array, int]:
        if all(d == 0 for d in dims):
            return known(axis, args, dims, **params)
        if dims[1] is None and _joinable(args, dims, params):
            rows, sizes = _to_front(args[0], dims[0], axis.size), _to_front(args[2], dims[2], axis.size)
            return _joined(rows, args[1], sizes, params), 0
        moved = tuple(_to_front(x, d, axis.size) for x, d in zip(args, dims, strict=True))
        return known(axis, moved, (0, 0, 0), **params)

    batching.fancy_primitive_batchers[primitive] = rule


def _to_front(array: Array, axis: int | None, n: int) -> Array:
    return jnp.broadcast_to(array, (n, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)


def _joinable(args: tuple, dims: tuple, params: dict[str, Any]) -> bool:
    """Whether rows are grouped (not what is summed over), with one list of sizes and no further batch axes."""
    numbers = params["ragged_dot_dimension_numbers"]
    (contracted, _), (batch, _) = numbers.dot_dimension_numbers
    rank, size_rank = (args[i].ndim - (dims[i] is not None) for i in (0, 2))
    by_row = tuple(contracted) == (1,) and tuple(numbers.lhs_ragged_dimensions) == (0,)
    return rank == 2 and size_rank == 1 and by_row and not batch and params.get("group_offset") is None


def _joined(rows: Array, experts: Array, sizes: Array, params: dict[str, Any]) -> Array:
    """The rows `[n, m, k]` of all examples in one product: sorted by group, multiplied, put back."""
    n, m, k = rows.shape
    ends = jnp.cumsum(sizes, axis=1)
    # A row beyond the last end is in no group: it is sorted behind all others, and stays behind the last end.
    group = jax.vmap(lambda e: jnp.searchsorted(e, jnp.arange(m), side="right"))(ends)
    order = jnp.argsort(group.reshape(-1))
    product = lax.ragged_dot_general(rows.reshape(n * m, k)[order], experts, sizes.sum(0, dtype=sizes.dtype), **params)
    return product[jnp.argsort(order)].reshape(n, m, *product.shape[1:])
