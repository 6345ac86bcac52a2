"""Contract per-example gradients while the backward pass runs, so that no layer's factors outlive it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.extend.core as jex

from greats_jax.errors import ArgumentError
from greats_jax.ghost.execution import Folded
from greats_jax.ghost.inlining import scan_parts
from greats_jax.ghost.layout import LeafSpec, TermSpec
from greats_jax.ghost.per_example import PerExampleGrads
from greats_jax.ghost.terms import Stacked, Value
from greats_jax.ghost.tracing import Entry, Request, Traced, trace

Array = jax.Array
PyTree = Any
Contract = Callable[..., PyTree]


def value_and_contraction(
    loss_fn: Callable[..., Any],
    contract: Contract,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    leaves: Callable[[str], bool] | None = None,
    instantiate_below: float = 0.5,
) -> Callable[..., Any]:
    """Transform a loss of one example into losses and one contraction of the gradients of a batch.

    `value_and_per_example_grads` keeps the factors of all layers until they are contracted. Here the layers of a
    `lax.scan` are contracted one by one inside the backward scan, and their factors are dropped: the memory is that of
    an ordinary backward pass, rematerialisation included. What is given up is the update from the factors.

    Args:
        loss_fn: as for `value_and_per_example_grads`.
        contract: `contract(grads, layer, *like) -> pytree of arrays` that add up over parameters, e.g.
            `lambda grads, layer: grads.gram()`. It is called once for each scan over layers, where the parameters of
            `grads` are those of one layer and `layer` is its index (i32, traced), and once with all other parameters
            and `layer` None. A weight that all layers share is among the latter, and so are layers that are not
            scanned.
        argnums: which positional arguments are parameters.
        has_aux: whether the loss returns auxiliary outputs.
        leaves: parameter leaves to take part, by key path; None for all.
        instantiate_below: as for `value_and_per_example_grads`.

    Returns:
        `fn(*others, batch, like=()) -> (losses f32[n], total)`, or `((losses, aux), total)`; `total` is the sum of all
        that `contract` returned. `like` is a tuple of pytrees with the structure of the parameters; each reaches
        `contract` cut as the parameters of `grads` are, so that `grads.dot(like[0])` works there.

    Raises:
        ArgumentError: as for `value_and_per_example_grads`, or a tree in `like` of another structure.
    """
    request = Request(loss_fn, argnums, has_aux, leaves, instantiate_below)

    @jax.jit
    def transformed(*args: PyTree, like: tuple[PyTree, ...] = ()) -> tuple[Any, PyTree]:
        traced = trace(request, args)
        extras = [_flatten_like(tree, traced) for tree in like]
        groups, rest = _group(traced)
        folds = [_fold(traced, group, contract, extras) for group in groups]
        loose = _Part(traced.leaves, rest, traced.entries)
        value, results = traced.run([*(entry.value for entry in loose.entries), *folds])
        totals = [results[fold] for fold in folds]
        if rest or not folds:
            totals.append(contract(loose.grads(results, traced.n), None, *(loose.choose(x) for x in extras)))
        return value, jax.tree.map(lambda *parts: sum(parts[1:], start=parts[0]), *totals)

    return transformed


def _flatten_like(tree: PyTree, traced: Traced) -> list[Any]:
    leaves, treedef = jax.tree.flatten(tree)
    if treedef != traced.treedef:
        raise ArgumentError(
            f"a tree in like= has structure {treedef}; it must be that of the parameters, {traced.treedef}"
        )
    return leaves


class _Part:
    """Some of the parameter leaves, with the operands that they use; as parameters they are a list."""

    def __init__(self, specs: Sequence[LeafSpec], chosen: Sequence[int], entries: Sequence[Entry]):
        used = sorted({i for c in chosen for term in specs[c].terms or () for i, _ in term.operands})
        self._place = {position: i for i, position in enumerate(used)}
        self.chosen = chosen
        self.entries = [entries[i] for i in used]
        self.specs = [self._renumbered(specs[c]) for c in chosen]

    def _renumbered(self, spec: LeafSpec) -> LeafSpec:
        def renumber(term: TermSpec) -> TermSpec:
            return replace(term, operands=tuple((self._place[i], labels) for i, labels in term.operands))

        return replace(spec, terms=tuple(renumber(term) for term in spec.terms or ()))

    def grads(self, arrays: Any, n: int) -> PerExampleGrads:
        """The gradients of these leaves, from what maps the value of an entry to its array."""
        operands = tuple(entry.cut(arrays[entry.value]) for entry in self.entries)
        return PerExampleGrads(operands, tuple(self.specs), jax.tree.structure([0] * len(self.specs)), n)

    def choose(self, leaves: Sequence[Any]) -> list[Any]:
        """These leaves of a flattened tree."""
        return [leaves[c] for c in self.chosen]


def _group(traced: Traced) -> tuple[list[list[int]], list[int]]:
    """Positions of leaves that can be contracted layer by layer, by the scan they are stacked in, and of the rest."""
    groups: dict[int, list[int]] = {}
    rest = []
    for position, spec in enumerate(traced.leaves):
        if not spec.terms:
            continue
        eqn = _scan_of(spec, traced)
        if eqn is None:
            rest.append(position)
        else:
            groups.setdefault(id(eqn), []).append(position)
    return list(groups.values()), rest


def _scan_of(spec: LeafSpec, traced: Traced) -> jex.JaxprEqn | None:
    """The scan in whose iterations all operands of a stacked leaf are at hand, or None."""
    used = [(traced.entries[i], labels) for term in spec.terms or () for i, labels in term.operands]
    eqns = {id(e.value.eqn): e.value.eqn for e, _ in used if isinstance(e.value, Stacked)}
    if spec.stack is None or len(eqns) != 1:
        return None
    (eqn,) = eqns.values()
    for entry, labels in used:
        stacked = labels.labels[:1] == (spec.stack,)
        if not stacked and spec.stack in labels.all_labels:
            return None
        if _inside(entry.value, eqn, stacked) is None:
            return None
    return eqn


def _inside(value: Value, eqn: jex.JaxprEqn, stacked: bool) -> Value | None:
    """The value as the body of the scan sees it in one iteration."""
    if isinstance(value, Stacked):
        return value.inner
    parts = scan_parts(eqn)
    consts, _, xs = parts.split(eqn.invars)
    outer, inner = (xs, parts.split(parts.body.jaxpr.invars)[2]) if stacked else (consts, parts.body.jaxpr.invars)
    return next((b for a, b in zip(outer, inner, strict=False) if a is value), None)


def _fold(traced: Traced, group: list[int], contract: Contract, extras: Sequence[list[Any]]) -> Folded:
    """The contraction of one scan's leaves, as something to be done in each of its iterations."""
    eqn = _scan_of(traced.leaves[group[0]], traced)
    assert eqn is not None
    specs = {position: _of_one_layer(traced.leaves[position]) for position in group}
    entries = list(traced.entries)
    for position in group:
        spec = traced.leaves[position]
        for i, labels in (pair for term in spec.terms or () for pair in term.operands):
            stacked = labels.labels[:1] == (spec.stack,)
            value = _inside(traced.entries[i].value, eqn, stacked)
            assert value is not None
            shape = traced.entries[i].shape
            entries[i] = Entry(value, shape[1:] if stacked else shape, traced.entries[i].classes)
    part = _Part([specs.get(i, spec) for i, spec in enumerate(traced.leaves)], group, entries)
    inner = tuple(dict.fromkeys(entry.value for entry in part.entries))

    def use(arrays: list[Array], layer: Array) -> PyTree:
        grads = part.grads(dict(zip(inner, arrays, strict=True)), traced.n)
        like = [[jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in part.choose(e)] for e in extras]
        return contract(grads, layer, *like)

    return Folded(eqn, inner, use)


def _of_one_layer(spec: LeafSpec) -> LeafSpec:
    """The leaf without its leading, stacked axis."""

    def cut(term: TermSpec) -> TermSpec:
        return replace(
            term,
            operands=tuple(
                (i, s._replace(labels=s.labels[1:]) if s.labels[:1] == (spec.stack,) else s) for i, s in term.operands
            ),
        )

    return replace(
        spec,
        shape=spec.shape[1:],
        splits=spec.splits[1:],
        sizes=tuple((label, size) for label, size in spec.sizes if label != spec.stack),
        stack=None,
        terms=tuple(cut(term) for term in spec.terms or ()),
    )
