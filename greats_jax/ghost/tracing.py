"""From a loss to the program of its vmapped gradient, with every weight's gradient written as factors in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from greats_jax.errors import ArgumentError
from greats_jax.ghost.births import Walker
from greats_jax.ghost.execution import Results, execute, prune
from greats_jax.ghost.inlining import inline_calls
from greats_jax.ghost.layout import LeafSpec, OperandPool, constant_leaf, describe_leaf
from greats_jax.ghost.ragged import let_ragged_dot_be_mapped
from greats_jax.ghost.terms import MismatchError, Value, whole

Array = jax.Array
PyTree = Any


class Request(NamedTuple):
    """What a transform was asked for.

    Attributes:
        loss_fn: loss of one example.
        argnums: positions of the parameters, as in `jax.grad`.
        has_aux: whether the loss returns auxiliary outputs.
        leaves: which parameter leaves are factored, by key path; None for all. The others count as constants.
        instantiate_below: see `Walker`.
    """

    loss_fn: Callable[..., Any]
    argnums: int | Sequence[int]
    has_aux: bool
    leaves: Callable[[str], bool] | None
    instantiate_below: float


class Entry(NamedTuple):
    """One operand of the factors: a value of the program, the shape it is cut into, its classes if it holds ids."""

    value: Value
    shape: tuple[int, ...]
    classes: int

    def cut(self, array: Array) -> Array:
        """The operand in the shape of its atoms; ids that address no row become -1."""
        array = jnp.asarray(array).reshape(self.shape)
        if not self.classes:
            return array
        return jnp.where((array >= 0) & (array < self.classes), array, -1).astype(jnp.int32)


class Traced(NamedTuple):
    """A traced request.

    Attributes:
        program: flat jaxpr of `vmap(value_and_grad(loss))`.
        inputs: its arguments.
        outputs: variables of the losses and auxiliary outputs, in the structure of the result.
        leaves: how each parameter leaf is made of `entries`.
        entries: the operands.
        treedef: structure of the parameters.
        n: number of examples.
    """

    program: jex.ClosedJaxpr
    inputs: list[Array]
    outputs: PyTree
    leaves: tuple[LeafSpec, ...]
    entries: tuple[Entry, ...]
    treedef: Any
    n: int

    def run(self, wanted: Iterable[Any]) -> tuple[Any, Results]:
        """Evaluate the losses and what else is wanted, and nothing more."""
        needed = [*jax.tree.leaves(self.outputs), *wanted]
        results = execute(prune(self.program.jaxpr, needed), self.program.consts, self.inputs)
        return jax.tree.map(lambda v: jnp.asarray(results[v]), self.outputs), results


def trace(request: Request, args: tuple[PyTree, ...]) -> Traced:
    """Trace the loss over the batch, which is the last argument, and find the factors of its gradients.

    Raises:
        ArgumentError: arguments that do not fit the request.
    """
    let_ragged_dot_be_mapped()
    single = isinstance(request.argnums, int)
    numbers = (request.argnums,) if isinstance(request.argnums, int) else tuple(request.argnums)
    positions = _check_positions(numbers, len(args))
    n = _batch_size(args[-1])
    flat, treedef = jax.tree_util.tree_flatten_with_path(
        args[positions[0]] if single else tuple(args[i] for i in positions)
    )
    _refuse_complex(flat)
    names = [jax.tree_util.keystr(path) for path, _ in flat]
    wanted = [_is_wanted(request, name, leaf) for name, (_, leaf) in zip(names, flat, strict=True)]
    varied = [leaf for (_, leaf), yes in zip(flat, wanted, strict=True) if yes]
    fixed = [leaf for (_, leaf), yes in zip(flat, wanted, strict=True) if not yes]
    others = [a for i, a in enumerate(args[:-1]) if i not in positions]

    def loss_of_one(varied: list, fixed: list, others: list, example: PyTree) -> Any:
        left, right, rest = iter(varied), iter(fixed), iter(others)
        rebuilt = treedef.unflatten([next(left) if yes else next(right) for yes in wanted])
        trees = dict(zip(positions, (rebuilt,) if single else rebuilt, strict=True))
        return request.loss_fn(*(trees[i] if i in trees else next(rest) for i in range(len(args) - 1)), example)

    grad_fn = jax.vmap(jax.value_and_grad(loss_of_one, has_aux=request.has_aux), in_axes=(None, None, None, 0))
    inputs = (varied, fixed, others, args[-1])
    closed, shape = jax.make_jaxpr(grad_fn, return_shape=True)(*inputs)
    program = inline_calls(closed)
    count = len(program.jaxpr.outvars) - len(varied)
    walker, pool = Walker(program.jaxpr, request.instantiate_below), OperandPool()
    births = iter(program.jaxpr.outvars[count:])
    leaves = []
    for name, (_, leaf), yes in zip(names, flat, wanted, strict=True):
        dims, dtype = tuple(jnp.shape(leaf)), jnp.result_type(leaf).name
        leaves.append(
            _leaf(walker, pool, next(births), name, dims, dtype, n) if yes else constant_leaf(name, dims, dtype)
        )
    outputs = jax.tree.unflatten(jax.tree.structure(shape[0]), program.jaxpr.outvars[:count])
    entries = tuple(Entry(*key) for key in pool.entries)
    return Traced(program, jax.tree.leaves(inputs), outputs, tuple(leaves), entries, treedef, n)


def _is_wanted(request: Request, name: str, leaf: Any) -> bool:
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return floating and (request.leaves is None or request.leaves(name))


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
