"""`value_and_per_example_grads`: the function transform of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from greats_jax.errors import ArgumentError
from greats_jax.ghost.births import Walker
from greats_jax.ghost.execution import execute, prune
from greats_jax.ghost.inlining import inline_calls
from greats_jax.ghost.layout import LeafSpec, OperandPool, constant_leaf, describe_leaf
from greats_jax.ghost.per_example import PerExampleGrads
from greats_jax.ghost.terms import MismatchError, whole

Array = jax.Array
PyTree = Any


def value_and_per_example_grads(
    loss_fn: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    instantiate_below: float = 0.5,
) -> Callable[..., Any]:
    """Transform a loss of one example into losses and factored gradients of a batch.

    The program of `vmap(value_and_grad(loss_fn))` is traced, and cut where each weight's gradient is born as an outer
    product: the operands are returned instead of the product, so nothing of the size of the parameters is formed per
    example. A leaf whose gradient is not born in a recognised way is materialised (that leaf alone) and is still exact;
    `PerExampleGrads.explain()` names it. A loss cannot mix examples (as batch statistics would): it sees only one.

    Args:
        loss_fn: `loss_fn(*others, example) -> scalar`, or `(scalar, aux)` with `has_aux`. Any JAX code.
        argnums: which positional arguments are parameters (not the last one, which is the batch).
        has_aux: whether the loss returns auxiliary outputs; they come back batched on axis 0.
        instantiate_below: keep an outer product instead of its operands when it has at most this fraction of their
            elements (0: always the operands). The result does not depend on it, memory and FLOPs do.

    Returns:
        `fn(*others, batch) -> (losses f32[n], PerExampleGrads)`, or `((losses, aux), PerExampleGrads)`. The last
        positional argument is a pytree batched on axis 0, the others are broadcast. Traceable under `jit`, `scan` and
        `vmap`. Cost: one forward and one backward without weight gradients, plus what the contractions ask for.

    Raises:
        ArgumentError: `argnums` names the batched argument, or batch leaves disagree on axis 0.
    """
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    @jax.jit
    def transformed(*args: PyTree) -> tuple[Any, PerExampleGrads]:
        positions = _check_positions(numbers, len(args))
        n = _batch_size(args[-1])
        params = args[positions[0]] if isinstance(argnums, int) else tuple(args[i] for i in positions)
        return _Trace(loss_fn, has_aux, instantiate_below).run(args, positions, params, n)

    return transformed


def _refuse_complex(flat: Sequence[tuple[Any, Any]]) -> None:
    for path, leaf in flat:
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ArgumentError(
                f"parameter {jax.tree_util.keystr(path)} is complex: split it into two real leaves, real and imaginary"
            )


def _check_positions(numbers: tuple[int, ...], count: int) -> tuple[int, ...]:
    if count < 2:
        raise ArgumentError(f"expected at least two positional arguments (parameters, batch); found {count}")
    positions = tuple(i + count if i < 0 else i for i in numbers)
    for i in positions:
        if not 0 <= i < count:
            raise ArgumentError(
                f"argnums names argument {i}, but the function was called with {count} positional arguments"
            )
        if i == count - 1:
            raise ArgumentError(
                f"argnums names argument {i}, the last one, which is the batch; name the arguments that hold parameters"
            )
    if len(set(positions)) != len(positions):
        raise ArgumentError(f"argnums names an argument twice: {numbers}")
    return positions


def _batch_size(batch: PyTree) -> int:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ArgumentError(
            "the batch (last argument) has no arrays: pass a pytree of arrays with the examples on axis 0"
        )
    sizes = {}
    for path, leaf in leaves:
        if jnp.ndim(leaf) == 0:
            raise ArgumentError(
                f"batch leaf {jax.tree_util.keystr(path) or '<root>'} is a scalar: "
                "every leaf needs the examples on axis 0"
            )
        sizes.setdefault(jnp.shape(leaf)[0], jax.tree_util.keystr(path) or "<root>")
    if len(sizes) > 1:
        raise ArgumentError(
            f"batch leaves disagree on axis 0 (the examples): {', '.join(f'{p} has {s}' for s, p in sizes.items())}"
        )
    n = next(iter(sizes))
    if n == 0:
        raise ArgumentError("the batch is empty: axis 0 has size 0")
    return n


class _Trace:
    """One application of the transform to concrete shapes."""

    def __init__(self, loss_fn: Callable[..., Any], has_aux: bool, instantiate_below: float):
        self.loss_fn = loss_fn
        self.has_aux = has_aux
        self.instantiate_below = instantiate_below

    def run(self, args: tuple, positions: tuple[int, ...], params: PyTree, n: int) -> tuple[Any, PerExampleGrads]:
        flat, treedef = jax.tree_util.tree_flatten_with_path(params)
        _refuse_complex(flat)
        is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for _, leaf in flat]
        varied = [leaf for (_, leaf), yes in zip(flat, is_float, strict=True) if yes]
        fixed = [leaf for (_, leaf), yes in zip(flat, is_float, strict=True) if not yes]
        others = [a for i, a in enumerate(args[:-1]) if i not in positions]

        def loss_of_one(varied: list, fixed: list, others: list, example: PyTree) -> Any:
            left, right = iter(varied), iter(fixed)
            rebuilt = treedef.unflatten([next(left) if yes else next(right) for yes in is_float])
            trees = dict(
                zip(positions, (rebuilt,) if len(positions) == 1 and rebuilt_is_single else rebuilt, strict=True)
            )
            rest = iter(others)
            return self.loss_fn(*(trees[i] if i in trees else next(rest) for i in range(len(args) - 1)), example)

        rebuilt_is_single = params is args[positions[0]]
        grad_fn = jax.vmap(jax.value_and_grad(loss_of_one, has_aux=self.has_aux), in_axes=(None, None, None, 0))
        inputs = (varied, fixed, others, args[-1])
        closed, shape = jax.make_jaxpr(grad_fn, return_shape=True)(*inputs)
        program = inline_calls(closed)
        outputs = program.jaxpr.outvars
        value_outputs, grad_outputs = outputs[: len(outputs) - len(varied)], outputs[len(outputs) - len(varied) :]

        walker, pool = Walker(program.jaxpr, self.instantiate_below), OperandPool()
        births = iter(grad_outputs)
        leaves = []
        for (path, leaf), yes in zip(flat, is_float, strict=True):
            name, dims, dtype = jax.tree_util.keystr(path), tuple(jnp.shape(leaf)), jnp.result_type(leaf).name
            leaves.append(
                _leaf(walker, pool, next(births), name, dims, dtype, n) if yes else constant_leaf(name, dims, dtype)
            )

        values = [value for value, _, _ in pool.entries]
        results = execute(prune(program.jaxpr, [*value_outputs, *values]), program.consts, jax.tree.leaves(inputs))
        operands = tuple(_cut(results[value], dims, classes) for value, dims, classes in pool.entries)
        value = jax.tree.unflatten(jax.tree.structure(shape[0]), [jnp.asarray(results[v]) for v in value_outputs])
        return value, PerExampleGrads(operands, tuple(leaves), treedef, n)


def _leaf(
    walker: Walker, pool: OperandPool, born: Any, path: str, shape: tuple[int, ...], dtype: str, n: int
) -> LeafSpec:
    """Factor one gradient output, or take it whole when its axes cannot be matched to the parameter."""
    stacked = walker.is_stacked(born)
    try:
        terms = walker.terms(born)
        return describe_leaf(path, shape, dtype, terms, n, pool, _kind(walker, terms, shape), stacked)
    except MismatchError:
        if isinstance(born, jex.Literal):
            raise ArgumentError(
                f"the gradient of {path} is the constant {born.val} for every example: "
                "the loss does not depend on the data"
            ) from None
        return describe_leaf(
            path, shape, dtype, [whole(born, born.aval.shape)], n, pool, "materialized (axes not matched)", stacked
        )


def _kind(walker: Walker, terms: list, shape: tuple[int, ...]) -> str:
    if any(not t.is_plain for t in terms):
        return "factored"
    if sum(size > 1 for size in shape) <= 1:
        return "whole"
    reasons = {walker.stop(op.value) for t in terms for op in t.operands}
    named = sorted(r for r in reasons if r)
    return f"materialized (ended at {', '.join(named)})" if named else "instantiated"


def _cut(array: Array, shape: tuple[int, ...], classes: int) -> Array:
    """An operand in the shape of its atoms; ids that address no row become -1."""
    array = jnp.asarray(array).reshape(shape)
    if not classes:
        return array
    return jnp.where((array >= 0) & (array < classes), array, -1).astype(jnp.int32)
