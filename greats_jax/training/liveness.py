"""Peak memory of a traced program, from the lifetimes of its arrays; nothing is compiled or run.

XLA fuses what is computed element by element into what reads it, so such a result takes no memory of its own until a
product, a loop or the like needs it as an array. Views (reshape, transpose) never do. A loop keeps its carry once and
the peak of one turn. What it stacks is there from the start of the program: XLA fills those arrays with zeros, which
waits for nothing and is scheduled first (seen in its buffer assignments on CPU).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp

from greats_jax.ghost.inlining import as_closed, inline_calls, is_scan, scan_parts

PyTree = Any

_VIEWS = frozenset({"reshape", "transpose", "squeeze", "expand_dims", "copy", "copy_p"})
# What reads one array and may read it fused, but writes an array that is kept.
_REDUCTIONS = frozenset(
    {
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "reduce_prod",
        "reduce_and",
        "reduce_or",
        "argmax",
        "argmin",
        "reduce",
        "gather",
    }
)
# What reads and writes arrays. Everything that is in none of these sets is fused.
_WHOLE = frozenset(
    {
        "cholesky", "conv_general_dilated", "cumlogsumexp", "cummax", "cumsum", "dot_general", "dynamic_update_slice",
        "eigh", "lu", "qr", "ragged_dot_general", "scatter", "scatter-add", "scatter_add", "sort", "svd",
        "top_k", "triangular_solve",
    }
)  # fmt: skip
_LOOPS = frozenset({"scan", "while", "cond"})
_IN_PLACE = frozenset({"while", "scatter", "scatter-add", "scatter_add", "dynamic_update_slice", "sort"})


class Array(NamedTuple):
    """An array that is in memory at the peak."""

    shape: tuple[int, ...]
    dtype: Any
    bytes: int


class Peak(NamedTuple):
    """The most memory that a program's own arrays take at one time, in bytes, and which arrays those are."""

    bytes: int
    arrays: tuple[Array, ...]


def peak_memory(function: Callable[..., Any], *args: PyTree) -> Peak:
    """The peak of everything that a call allocates beside its arguments.

    Args:
        function: anything JAX can trace.
        args: arguments, or `jax.ShapeDtypeStruct`s in their place.

    Returns:
        The estimate. Results that are fused into an update of the arguments count nothing, as when those are donated.
        Cost: a trace, and a walk over the program.
    """
    return _peak(jax.make_jaxpr(function)(*args), ())


class _Event(NamedTuple):
    """A kernel.

    Attributes:
        reads: Arrays it reads.
        allocates: Arrays it writes.
        inside: What it allocates while it runs.
        in_place: Those of `allocates` that may take the place of something it reads.
        stacks: Those of `allocates` that were there from the start.
    """

    reads: frozenset[Any]
    allocates: tuple[Any, ...]
    inside: Peak
    in_place: tuple[Any, ...]
    stacks: tuple[Any, ...] = ()


NOTHING = Peak(0, ())


def _peak(closed: jex.ClosedJaxpr, slices: Sequence[Any]) -> Peak:
    """The peak of one program; `slices` are those of its inputs that have yet to be cut out of an array."""
    jaxpr = inline_calls(closed).jaxpr
    schedule = _Schedule((*jaxpr.invars, *jaxpr.constvars), [jaxpr.invars[i] for i in slices])
    wanted = _wanted(jaxpr)
    for eqn in jaxpr.eqns:
        if any(v in wanted for v in eqn.outvars):
            schedule.add(eqn, wanted)
    return schedule.peak(jaxpr.outvars)


def _wanted(jaxpr: jex.Jaxpr) -> set[Any]:
    """What the outputs depend on."""
    wanted = {v for v in jaxpr.outvars if isinstance(v, jex.Var)}
    for eqn in reversed(jaxpr.eqns):
        if any(v in wanted for v in eqn.outvars):
            wanted |= {v for v in eqn.invars if isinstance(v, jex.Var)}
    return wanted


class _Schedule:
    """The kernels of a program in the order in which it is written."""

    def __init__(self, inputs: Sequence[Any], slices: Sequence[Any]):
        self._events: list[_Event] = []
        # Of each value the arrays that its computation reads. An array reads itself, and so does a view of it.
        self._sources: dict[Any, frozenset[Any]] = {v: frozenset({v}) for v in inputs}
        self._arrays = set(inputs) - set(slices)
        self._outside = set(inputs)
        for v in slices:
            self._sources[v] = frozenset()
            self._outside.discard(v)

    def add(self, eqn: jex.JaxprEqn, wanted: set[Any]) -> None:
        """Take in one equation."""
        name, inputs = eqn.primitive.name, [v for v in eqn.invars if isinstance(v, jex.Var)]
        if name in _VIEWS and inputs and inputs[0] in self._arrays:
            self._sources[eqn.outvars[0]] = self._sources[inputs[0]]
            self._arrays.add(eqn.outvars[0])
        elif name in _LOOPS or name in _WHOLE:
            reads = frozenset().union(*(self._array(v) for v in inputs))
            self._kernel(reads, eqn, wanted, _inside(eqn), _overwriting(eqn))
        elif name in _REDUCTIONS:
            reads = frozenset().union(*(self._sources[v] for v in inputs))
            self._kernel(reads, eqn, wanted, NOTHING, ())
        else:
            fused = frozenset().union(*(self._sources[v] for v in inputs))
            self._sources |= dict.fromkeys(eqn.outvars, fused)

    def _array(self, v: Any) -> frozenset[Any]:
        """The array that holds a value; it is written now if the value was fused so far."""
        if v not in self._arrays:
            self._events.append(_Event(self._sources[v], (v,), NOTHING, (v,)))
            self._sources[v] = frozenset({v})
            self._arrays.add(v)
        return self._sources[v]

    def _kernel(
        self, reads: frozenset[Any], eqn: jex.JaxprEqn, wanted: set[Any], inside: Peak, in_place: Sequence[Any]
    ) -> None:
        results = tuple(v for v in eqn.outvars if v in wanted)
        overwriting = tuple(v for v in results if v in in_place)
        stacks = tuple(v for v in results if v not in in_place) if is_scan(eqn) else ()
        self._events.append(_Event(reads, results, inside, overwriting, stacks))
        self._sources |= {v: frozenset({v}) for v in results}
        self._arrays.update(results)

    def peak(self, outputs: Sequence[Any]) -> Peak:
        """Run the kernels over a memory in which each array lives until it was last read."""
        last: dict[Any, int] = {}
        for i, event in enumerate(self._events):
            last |= dict.fromkeys((*event.allocates, *event.reads), i)
        for v in (v for v in outputs if isinstance(v, jex.Var)):
            last |= dict.fromkeys(self._sources[v], len(self._events))
        live = {v: _bytes(v.aval) for event in self._events for v in event.stacks}
        most = NOTHING
        for i, event in enumerate(self._events):
            dying = [v for v in event.reads if last[v] == i and v in live]
            live |= {v: _bytes(v.aval) for v in event.allocates}
            overwritten = _pairs([(v, live[v]) for v in dying], [live[v] for v in event.in_place])
            present = {v: size for v, size in live.items() if v not in overwritten}
            now = sum(present.values()) + event.inside.bytes
            if now > most.bytes:
                arrays = [Array(tuple(v.aval.shape), v.aval.dtype, size) for v, size in present.items()]
                most = Peak(now, (*arrays, *event.inside.arrays))
            for v in (*dying, *(v for v in event.allocates if last[v] == i)):
                del live[v]
        return most


def _pairs(dying: list[tuple[Any, int]], sizes: list[int]) -> set[Any]:
    """The dying arrays whose place is taken by one of a given size each."""
    taken = set()
    for size in sizes:
        fitting = next((v for v, room in dying if room == size and v not in taken), None)
        if fitting is not None:
            taken.add(fitting)
    return taken


def _overwriting(eqn: jex.JaxprEqn) -> list[Any]:
    """The results that take the place of what they start from: the carry of a loop, an array that is written into."""
    if is_scan(eqn):
        return list(eqn.outvars[: scan_parts(eqn).num_carry])
    return list(eqn.outvars) if eqn.primitive.name in _IN_PLACE else []


def _inside(eqn: jex.JaxprEqn) -> Peak:
    """The peak of one turn of a loop, or of the larger branch."""
    if is_scan(eqn):
        parts = scan_parts(eqn)
        return _peak(parts.body, range(parts.num_consts + parts.num_carry, len(eqn.invars)))
    if eqn.primitive.name == "while":
        return _peak(as_closed(eqn.params["body_jaxpr"]), ())
    if eqn.primitive.name == "cond":
        return max((_peak(as_closed(branch), ()) for branch in eqn.params["branches"]), key=lambda peak: peak.bytes)
    return NOTHING


def bytes_of(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array; integers of less than a byte are packed, as accelerators pack them."""
    bits = jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * getattr(dtype, "itemsize", 8)
    return math.ceil(math.prod(shape) * bits / 8)


def _bytes(aval: Any) -> int:
    return bytes_of(aval.shape, aval.dtype)
