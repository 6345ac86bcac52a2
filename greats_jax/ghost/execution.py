"""Evaluate only what is asked of a flat jaxpr, including values inside scan bodies.

A scan is emitted again through `jax.lax.scan` with the outputs that are still wanted, plus the inner values that became
factors, or what has been made of them in the same iteration: the products it used to stack or accumulate are no longer
computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax import lax

from greats_jax.ghost.inlining import ScanParts, bind, is_scan, read, scan_parts
from greats_jax.ghost.terms import Stacked, Value

Array = jax.Array
PyTree = Any


@dataclass(frozen=True, eq=False)
class Folded:
    """The sum, over the iterations of a scan, of what `use` makes of values inside its body.

    Attributes:
        eqn: the scan.
        inner: values of its body.
        use: `use(arrays, iteration) -> pytree of arrays`; `iteration` is the index into what the scan stacks.
    """

    eqn: jex.JaxprEqn
    inner: tuple[Value, ...]
    use: Callable[[list[Array], Array], PyTree]


@dataclass(frozen=True)
class ScanStep:
    """What is kept of one scan."""

    parts: ScanParts
    carry: tuple[int, ...]
    ys: tuple[int, ...]
    requests: tuple[Value, ...]
    folds: tuple[Folded, ...]
    body: Program


@dataclass(frozen=True)
class Program:
    """The equations of a jaxpr that are needed for `wanted`, in order."""

    jaxpr: jex.Jaxpr
    steps: tuple[tuple[jex.JaxprEqn, ScanStep | None], ...]
    wanted: tuple[Any, ...]
    inputs: frozenset[jex.Var]


def prune(jaxpr: jex.Jaxpr, wanted: Iterable[Any]) -> Program:
    """Keep the equations that `wanted` depends on: variables, literals, values inside scans or sums of such."""
    wanted = tuple(dict.fromkeys(w for w in wanted if not isinstance(w, jex.Literal)))
    needed: set[jex.Var] = {w for w in wanted if not isinstance(w, Stacked | Folded)}
    requests: dict[int, list[Stacked | Folded]] = {}
    for value in wanted:
        if isinstance(value, Stacked | Folded):
            requests.setdefault(id(value.eqn), []).append(value)
    steps = []
    for eqn in reversed(jaxpr.eqns):
        asked = requests.get(id(eqn), [])
        if not asked and not eqn.effects and not any(v in needed for v in eqn.outvars):
            continue
        if is_scan(eqn) and not eqn.effects:
            step, used = _prune_scan(eqn, needed, asked)
        else:
            step, used = None, [v for v in eqn.invars if not isinstance(v, jex.Literal)]
        needed.update(used)
        steps.append((eqn, step))
    return Program(jaxpr, tuple(reversed(steps)), wanted, frozenset(needed))


def _prune_scan(
    eqn: jex.JaxprEqn, needed: set[jex.Var], asked: Sequence[Stacked | Folded]
) -> tuple[ScanStep, list[jex.Var]]:
    parts = scan_parts(eqn)
    requests = tuple(dict.fromkeys(a.inner for a in asked if isinstance(a, Stacked)))
    folds = tuple(a for a in asked if isinstance(a, Folded))
    inside = [*requests, *(v for fold in folds for v in fold.inner)]
    inner = parts.body.jaxpr
    carry_in = parts.split(inner.invars)[1]
    ys = [i for i in range(parts.num_carry, len(eqn.outvars)) if eqn.outvars[i] in needed]
    carry = {i for i in range(parts.num_carry) if eqn.outvars[i] in needed}
    while True:
        body = prune(inner, [*(inner.outvars[i] for i in sorted(carry)), *(inner.outvars[i] for i in ys), *inside])
        grown = carry | {i for i, v in enumerate(carry_in) if v in body.inputs}
        if grown == carry:
            break
        carry = grown
    used = [
        outer
        for i, (outer, v) in enumerate(zip(eqn.invars, inner.invars, strict=True))
        if not isinstance(outer, jex.Literal) and (v in body.inputs or i - parts.num_consts in carry)
    ]
    return ScanStep(parts, tuple(sorted(carry)), tuple(ys), requests, folds, body), used


class Results:
    """Values of an evaluated program."""

    def __init__(self, consts: Sequence[tuple[jex.Var, Array]], args: Sequence[tuple[jex.Var, Array]]):
        self._env: dict[jex.Var, Array] = {**dict(consts), **dict(args)}
        self._of_scans: dict[Stacked | Folded, Any] = {}

    def __getitem__(self, value: Any) -> Any:
        """The array of a variable, literal or stacked value; the pytree of a folded one."""
        return self._of_scans[value] if isinstance(value, Stacked | Folded) else read(self._env, value)

    def set(self, value: Any, array: Any) -> None:
        """Record an array."""
        if isinstance(value, Stacked | Folded):
            self._of_scans[value] = array
        else:
            self._env[value] = array


def execute(program: Program, consts: Sequence[Array], args: Sequence[Array | None]) -> Results:
    """Run the kept equations. `args` may be None for inputs that are not in `program.inputs`."""
    jaxpr = program.jaxpr
    given = [(v, a) for v, a in zip(jaxpr.invars, args, strict=True) if a is not None]
    results = Results(list(zip(jaxpr.constvars, consts, strict=True)), given)
    for eqn, step in program.steps:
        if step is not None:
            _execute_scan(eqn, step, results)
            continue
        for var, out in zip(eqn.outvars, bind(eqn, [results[v] for v in eqn.invars]), strict=True):
            results.set(var, out)
    return results


def _execute_scan(eqn: jex.JaxprEqn, step: ScanStep, results: Results) -> None:
    parts, inner = step.parts, step.parts.body.jaxpr
    used = [
        results[v] if inner_v in step.body.inputs else None for v, inner_v in zip(eqn.invars, inner.invars, strict=True)
    ]
    consts, _, xs = parts.split(used)
    outer_carry = parts.split(eqn.invars)[1]

    def body(carry: list[Array], x: tuple[Array, list[Array | None]]) -> tuple[list[Array], tuple]:
        iteration, row = x
        full: list[Array | None] = [None] * parts.num_carry
        for i, value in zip(step.carry, carry, strict=True):
            full[i] = value
        inside = execute(step.body, parts.body.consts, [*consts, *full, *row])
        kept = [inside[inner.outvars[i]] for i in step.ys]
        folded = [fold.use([inside[v] for v in fold.inner], iteration) for fold in step.folds]
        return [inside[inner.outvars[i]] for i in step.carry], (kept, [inside[v] for v in step.requests], folded)

    start = [results[outer_carry[i]] for i in step.carry]
    counted = (jnp.arange(parts.length), xs)
    final, (ys, asked, folded) = lax.scan(
        body, start, counted, length=parts.length, reverse=parts.reverse, unroll=parts.unroll
    )
    for i, value in zip(step.carry, final, strict=True):
        results.set(eqn.outvars[i], value)
    for i, value in zip(step.ys, ys, strict=True):
        results.set(eqn.outvars[i], value)
    for value, array in zip(step.requests, asked, strict=True):
        results.set(Stacked(eqn, value), array)
    for fold, parts_of_sum in zip(step.folds, folded, strict=True):
        results.set(fold, jax.tree.map(lambda x: x.sum(0), parts_of_sum))
