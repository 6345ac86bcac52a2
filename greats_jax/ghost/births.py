"""Find where a per-example gradient is born: walk a flat jaxpr backwards from an output through linear view operations.

`Walker.terms(v)` writes `v` as a sum of `Term`s. It stops at the outer product (`dot_general` with the examples as a
batch dimension) or at the scatter-add of an embedding, and names its operands instead of its result. One small rule
per primitive; a primitive without a rule ends the walk and its result is taken whole, always right and only larger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.extend.core as jex
import numpy as np

from greats_jax.ghost.inlining import dtype_of, is_scan, scan_parts, shape_of
from greats_jax.ghost.terms import Atom, MismatchError, Operand, Stacked, Term, Value, regroup, unify_all, whole

Rule = Callable[["Walker", jex.JaxprEqn, int], "list[Term] | None"]

# A walk is cut at this depth, far beyond any chain of views, so that a deep unrolled network cannot exhaust the stack.
_MAX_DEPTH = 120

# An axis of this many entries is a vocabulary's. The loss holds logits [n, t, V] anyway, so factors of that size add
# nothing to the peak, while products [n, V, d] would.
_VOCABULARY = 2**14


class Walker:
    """Symbolic reader of one jaxpr (the program, or the body of a scan in it).

    Args:
        jaxpr: a flat jaxpr (see `inline_calls`).
        instantiate_below: an outer product is kept as such, not as its operands, when it has at most this
            fraction of their elements. Low-rank adapters are far smaller than their activations: storing the
            product is then both less memory and fewer FLOPs than any contraction of the operands.
        carries: inputs that stand for a running sum and cost nothing (carry of an enclosing scan).
    """

    def __init__(self, jaxpr: jex.Jaxpr, instantiate_below: float, carries: frozenset[jex.Var] = frozenset()):
        self.instantiate_below = instantiate_below
        self._carries = carries
        self._defined = {v: (eqn, i) for eqn in jaxpr.eqns for i, v in enumerate(eqn.outvars)}
        self._memo: dict[jex.Var, list[Term]] = {}
        self._bodies: dict[int, Walker] = {}
        self._depth = 0
        self.stops: dict[jex.Var, str] = {}
        self.products: set[Value] = set()

    def terms(self, atom: Any) -> list[Term]:
        """`atom` as a sum of terms whose output axes are its axes; no terms means zero."""
        if isinstance(atom, jex.Literal):
            if np.all(atom.val == 0):
                return []
            raise MismatchError
        if atom not in self._memo:
            self._memo[atom] = self._walk(atom)
        return self._memo[atom]

    def _walk(self, var: jex.Var) -> list[Term]:
        raw = [whole(var, shape_of(var))]
        if var not in self._defined:
            return raw
        eqn, index = self._defined[var]
        rule = RULES.get(eqn.primitive.name)
        if rule is None or self._depth > _MAX_DEPTH:
            self.stops[var] = eqn.primitive.name
            return raw
        self._depth += 1
        try:
            found = rule(self, eqn, index)
        except MismatchError:
            found = None
        finally:
            self._depth -= 1
        if found is None:
            self.stops[var] = eqn.primitive.name
            return raw
        if self._pays(var, found):
            return found
        ends = {name for t in found for op in t.operands for name in (self.stop(op.value) or "").split(", ") if name}
        if ends and all(t.is_plain and t.summed <= _iterations(eqn, t) for t in found):
            self.stops[var] = ", ".join(sorted(ends))  # as large as what the walk ended at: not a sum over tokens
        if not all(t.is_plain for t in found):
            self.products.add(var)
        return raw

    def _pays(self, var: jex.Var, terms: list[Term]) -> bool:
        """Whether the operands of `terms` are worth keeping instead of `var`."""
        counted = [t for t in terms if not self.is_carry(t)]
        if all(t.is_plain for t in counted):
            return (all(t.is_view for t in terms) and len(terms) <= 1) or len(counted) < len(terms)
        stored = {op.value: op.size() for t in counted for op in t.operands}
        share = self.instantiate_below / (8 if max(shape_of(var)) >= _VOCABULARY else 1)
        return int(np.prod(shape_of(var))) > share * sum(stored.values())

    def is_carry(self, term: Term) -> bool:
        """Whether a term is exactly the running sum of the enclosing scan."""
        return term.is_view and term.operands[0].value in self._carries and term.operands[0].axes == term.out

    def view(self, atom: Any) -> Term:
        """`atom` as one stored array seen through views; follows views only, never arithmetic."""
        if isinstance(atom, jex.Literal):
            raise MismatchError
        eqn, index = self._defined.get(atom, (None, 0))
        if eqn is None or eqn.primitive.name not in _VIEWS:
            return whole(atom, shape_of(atom))
        source = eqn.invars[index if eqn.primitive.name == "optimization_barrier" else 0]
        if isinstance(source, jex.Literal) or dtype_of(source).itemsize > dtype_of(atom).itemsize:
            return whole(atom, shape_of(atom))
        try:
            found = _VIEWS[eqn.primitive.name](eqn, self.view(source))
        except MismatchError:
            found = None
        return whole(atom, shape_of(atom)) if found is None else found

    def spread(self, atom: Any) -> Term:
        """`atom` as one stored array seen through views, without the axes along which it was repeated."""
        eqn, _ = self._defined.get(atom, (None, 0))
        if eqn is None or eqn.primitive.name != "broadcast_in_dim" or isinstance(eqn.invars[0], jex.Literal):
            return self.view(atom)
        source = self.view(eqn.invars[0])
        place = {int(d): axis for d, axis in zip(eqn.params["broadcast_dimensions"], source.out, strict=True)}
        return replace(source, out=tuple(place.get(i, ()) for i in range(len(shape_of(atom)))))

    def scalar(self, atom: Any) -> Any:
        """The 0-d variable or literal that `atom` is a broadcast of, or None."""
        while not isinstance(atom, jex.Literal) and shape_of(atom) != ():
            eqn, _ = self._defined.get(atom, (None, 0))
            if eqn is None or eqn.primitive.name not in ("broadcast_in_dim", "convert_element_type", "reshape"):
                return None
            if eqn.primitive.name == "convert_element_type" and not _keeps_values(eqn):
                return None
            atom = eqn.invars[0]
        return None if isinstance(atom, jex.Literal) and np.ndim(atom.val) != 0 else atom

    def is_stacked(self, atom: Any) -> bool:
        """Whether `atom` is a per-iteration output of a scan, seen through views: its layers lie along an axis."""
        while not isinstance(atom, jex.Literal) and atom in self._defined:
            eqn, index = self._defined[atom]
            if is_scan(eqn):
                return index >= scan_parts(eqn).num_carry
            if eqn.primitive.name not in _VIEWS:
                return False
            atom = eqn.invars[index if eqn.primitive.name == "optimization_barrier" else 0]
        return False

    def stop(self, value: Value) -> str | None:
        """The primitive at which the walk to `value` ended for want of a rule, if it did."""
        if isinstance(value, Stacked):
            return self.body(value.eqn).stop(value.inner)
        return self.stops.get(value)

    def body(self, eqn: jex.JaxprEqn) -> Walker:
        """The walker of a scan's body."""
        if id(eqn) not in self._bodies:
            parts = scan_parts(eqn)
            carries = frozenset(parts.split(parts.body.jaxpr.invars)[1])
            self._bodies[id(eqn)] = Walker(parts.body.jaxpr, self.instantiate_below, carries)
        return self._bodies[id(eqn)]


def _iterations(eqn: jex.JaxprEqn, term: Term) -> set[Atom]:
    """What a scan sums a plain term over, if `eqn` is a scan."""
    axes = term.operands[0].axes
    return set(axes[0]) if is_scan(eqn) and axes else set()


# ---- views: relabel only ---------------------------------------------------------------------------------------------


def _transpose(eqn: jex.JaxprEqn, term: Term) -> Term:
    return replace(term, out=tuple(term.out[i] for i in eqn.params["permutation"]))


def _reshape(eqn: jex.JaxprEqn, term: Term) -> Term | None:
    if eqn.params.get("dimensions") is not None:
        return None
    return regroup(term, shape_of(eqn.outvars[0]))


def _squeeze(eqn: jex.JaxprEqn, term: Term) -> Term:
    gone = {d % len(term.out) for d in eqn.params["dimensions"]}
    return replace(term, out=tuple(axis for i, axis in enumerate(term.out) if i not in gone))


def _unit_broadcast(eqn: jex.JaxprEqn, term: Term) -> Term | None:
    before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
    if int(np.prod(before)) != int(np.prod(after)):
        return None
    place = {int(d): term.out[i] for i, d in enumerate(eqn.params["broadcast_dimensions"])}
    return replace(term, out=tuple(place.get(i, ()) for i in range(len(after))))


def _is_float(atom: Any) -> bool:
    return np.issubdtype(dtype_of(atom), np.floating) or dtype_of(atom).name == "bfloat16"


def _keeps_values(eqn: jex.JaxprEqn) -> bool:
    """Whether a conversion is from float to float without loss."""
    source, target = eqn.invars[0], eqn.outvars[0]
    return _is_float(source) and _is_float(target) and dtype_of(source).itemsize <= dtype_of(target).itemsize


def _convert(eqn: jex.JaxprEqn, term: Term) -> Term | None:
    return term if _is_float(eqn.invars[0]) and _is_float(eqn.outvars[0]) else None


def _same(eqn: jex.JaxprEqn, term: Term) -> Term:
    return term


_VIEWS: dict[str, Callable[[jex.JaxprEqn, Term], Term | None]] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "broadcast_in_dim": _unit_broadcast,
    "convert_element_type": _convert,
    "copy": _same,
    "copy_p": _same,
    "name": _same,
    "optimization_barrier": _same,
    "sharding_constraint": _same,
}


def _view_rule(walker: Walker, eqn: jex.JaxprEqn, index: int) -> list[Term] | None:
    source = eqn.invars[index if eqn.primitive.name == "optimization_barrier" else 0]
    viewed = [_VIEWS[eqn.primitive.name](eqn, term) for term in walker.terms(source)]
    return None if any(t is None for t in viewed) else [t for t in viewed if t is not None]


# ---- linear arithmetic -----------------------------------------------------------------------------------------------


def _add(walker: Walker, eqn: jex.JaxprEqn, _: int) -> list[Term] | None:
    left, right = eqn.invars
    if shape_of(left) != shape_of(right):
        return None
    return [*walker.terms(left), *walker.terms(right)]


def _negate(walker: Walker, eqn: jex.JaxprEqn, _: int) -> list[Term]:
    return [replace(t, coefficient=-t.coefficient) for t in walker.terms(eqn.invars[0])]


def _multiply(walker: Walker, eqn: jex.JaxprEqn, _: int) -> list[Term] | None:
    for scaled, factor in (eqn.invars, reversed(eqn.invars)):
        if isinstance(scaled, jex.Literal) or shape_of(scaled) != shape_of(eqn.outvars[0]):
            continue
        scalar = walker.scalar(factor)
        if isinstance(scalar, jex.Literal):
            return [replace(t, coefficient=t.coefficient * float(scalar.val)) for t in walker.terms(scaled)]
        if scalar is not None:
            return [replace(t, operands=(*t.operands, Operand(scalar, ()))) for t in walker.terms(scaled)]
        terms = walker.terms(scaled)
        if terms and all(op.value in walker.products for t in terms for op in t.operands):
            return [whole(eqn.outvars[0], shape_of(scaled))]
        if not isinstance(factor, jex.Literal) and terms and all(t.is_joint for t in terms):
            spread = walker.spread(factor)
            if spread.operands[0].size() < int(np.prod(shape_of(scaled))):
                return [_times(t, spread) for t in terms]
    return None


def _times(term: Term, factor: Term) -> Term:
    """A term times an array with the same axes, or with size 1 where it is the same along an axis."""
    table = unify_all((a, b) for a, b in zip(term.out, factor.out, strict=True) if b)
    term, factor = term.substitute(table), factor.substitute(table)
    return Term((*term.operands, *factor.operands), term.out, term.coefficient * factor.coefficient)


def _divide(walker: Walker, eqn: jex.JaxprEqn, _: int) -> list[Term] | None:
    scaled, factor = eqn.invars
    scalar = walker.scalar(factor)
    if (
        not isinstance(scalar, jex.Literal)
        or isinstance(scaled, jex.Literal)
        or shape_of(scaled) != shape_of(eqn.outvars[0])
    ):
        return None
    return [replace(t, coefficient=t.coefficient / float(scalar.val)) for t in walker.terms(scaled)]


def _reduce_sum(walker: Walker, eqn: jex.JaxprEqn, _: int) -> list[Term]:
    gone = {int(a) for a in eqn.params["axes"]}
    return [
        replace(t, out=tuple(axis for i, axis in enumerate(t.out) if i not in gone))
        for t in walker.terms(eqn.invars[0])
    ]


# ---- births ----------------------------------------------------------------------------------------------------------


def _dot_general(walker: Walker, eqn: jex.JaxprEqn, _: int) -> list[Term]:
    (contract_l, contract_r), (batch_l, batch_r) = eqn.params["dimension_numbers"]
    left, right = (walker.view(v) for v in eqn.invars)
    pairs = [*zip(contract_l, contract_r, strict=True), *zip(batch_l, batch_r, strict=True)]
    table = unify_all((left.out[i], right.out[j]) for i, j in pairs)
    left, right = left.substitute(table), right.substitute(table)
    out = [left.out[i] for i in batch_l]
    out += [axis for i, axis in enumerate(left.out) if i not in {*contract_l, *batch_l}]
    out += [axis for i, axis in enumerate(right.out) if i not in {*contract_r, *batch_r}]
    return [Term((*left.operands, *right.operands), tuple(out), left.coefficient * right.coefficient)]


def _scatter_add(walker: Walker, eqn: jex.JaxprEqn, _: int) -> list[Term] | None:
    """Rows of an embedding: `zeros[V, d].at[ids].add(updates)` is a one-hot matrix times the updates."""
    base, indices, updates = eqn.invars
    dims = eqn.params["dimension_numbers"]
    shape = shape_of(base)
    inserted = tuple(int(d) for d in dims.inserted_window_dims)
    if inserted != tuple(int(d) for d in dims.scatter_dims_to_operand_dims) or len(inserted) != 1:
        return None
    if shape_of(indices)[-1] != 1 or "CLIP" in str(eqn.params["mode"]) or shape[inserted[0]] == 1:
        return None
    batching = {
        int(o): int(i) for o, i in zip(dims.operand_batching_dims, dims.scatter_indices_batching_dims, strict=True)
    }
    window = [int(d) for d in dims.update_window_dims]
    window_of = [d for d in range(len(shape)) if d not in batching and d != inserted[0]]
    if any(shape_of(updates)[u] != shape[o] for u, o in zip(window, window_of, strict=True)):
        return None
    ids, rows = walker.view(indices), walker.view(updates)
    scattered = [d for d in range(len(shape_of(updates))) if d not in window]
    table = unify_all(zip(ids.out[:-1], (rows.out[d] for d in scattered), strict=True))
    ids, rows = ids.substitute(table), rows.substitute(table)
    classes = Atom(shape[inserted[0]])
    place = {o: rows.out[u] for u, o in zip(window, window_of, strict=True)}
    place |= {o: ids.out[i] for o, i in batching.items()}
    place[inserted[0]] = (classes,)
    one_hot = replace(ids.operands[0], one_hot=classes)
    born = Term((one_hot, *rows.operands), tuple(place[d] for d in range(len(shape))), rows.coefficient)
    return [*walker.terms(base), born]


# ---- scan ------------------------------------------------------------------------------------------------------------


def _scan(walker: Walker, eqn: jex.JaxprEqn, index: int) -> list[Term] | None:
    parts = scan_parts(eqn)
    inner = parts.body.jaxpr.outvars[index]
    if isinstance(inner, jex.Literal):
        return None
    layer = Atom(parts.length)
    axis = () if parts.length == 1 else (layer,)
    body = walker.body(eqn)
    found = body.terms(inner)
    if index >= parts.num_carry:
        lifted = [_lift(eqn, t, axis) for t in found]
        return [replace(t, out=(axis, *t.out)) for t in lifted] if _vary(lifted, axis) else None
    running = [t for t in found if body.is_carry(t)]
    own = parts.split(parts.body.jaxpr.invars)[1][index]
    if len(running) != 1 or running[0].operands[0].value is not own:
        return None
    start = walker.terms(parts.split(eqn.invars)[1][index])
    lifted = [_lift(eqn, t, axis) for t in found if t is not running[0]]
    return [*start, *lifted] if _vary(lifted, axis) else None


def _lift(eqn: jex.JaxprEqn, term: Term, axis: tuple[Atom, ...]) -> Term:
    """A term of a scan body, over all iterations: its operands gain the scan axis."""
    return replace(term, operands=tuple(_lift_operand(eqn, op, axis) for op in term.operands))


def _vary(terms: list[Term], axis: tuple[Atom, ...]) -> bool:
    """Whether every term depends on the iteration; one that does not would be summed once instead of `length` times."""
    return all(any(op.axes[:1] == (axis,) for op in t.operands) for t in terms) if axis else True


def _lift_operand(eqn: jex.JaxprEqn, operand: Operand, axis: tuple[Atom, ...]) -> Operand:
    """Use what already exists outside (a constant, an input stacked by the forward pass) before storing it again."""
    parts = scan_parts(eqn)
    consts, _, xs = parts.split(parts.body.jaxpr.invars)
    outer_consts, _, outer_xs = parts.split(eqn.invars)
    value: Value = operand.value
    if value in consts:
        outer = outer_consts[consts.index(value)]
        if not isinstance(outer, jex.Literal):
            return replace(operand, value=outer)
    if value in xs:
        return replace(operand, value=outer_xs[xs.index(value)], axes=(axis, *operand.axes))
    return replace(operand, value=Stacked(eqn, value), axes=(axis, *operand.axes))


RULES: dict[str, Rule] = {
    **dict.fromkeys(_VIEWS, _view_rule),
    "add": _add,
    "add_any": _add,
    "neg": _negate,
    "mul": _multiply,
    "div": _divide,
    "reduce_sum": _reduce_sum,
    "dot_general": _dot_general,
    "scatter-add": _scatter_add,
    "scatter_add": _scatter_add,
    "scan": _scan,
}
