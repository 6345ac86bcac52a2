"""What the engine decided for each parameter leaf, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from greats_jax.ghost.contractions import gram_plan
from greats_jax.ghost.einsum import Plan, Spec, intermediates, plan_contraction, sizes_of
from greats_jax.ghost.factored import Factored
from greats_jax.ghost.layout import EXAMPLE, TermSpec


class LeafExplanation(NamedTuple):
    """One row of `explain()`.

    Attributes:
        path: key path of the parameter.
        shape: its shape.
        kind: `factored` (operands of an outer product), `instantiated` (the product, smaller than its operands),
            `whole` (a vector kept per example), `materialized (ended at <primitive>)` (not recognised), `zero` or
            `constant`, or `left out` by `only`.
        contraction: how its Gram is computed: `ghost` (inner products of tokens), `instantiate` (one product per
            example, slice by slice), `whole` (from arrays stored per example); `in k slices` where it is cut to bound
            memory.
        flops: of the Gram.
        stored_bytes: of its operands; an operand shared by several leaves is counted at each.
        peak_bytes: largest intermediate of the Gram.
        dot: how the product with a direction is computed: `per-token` (the direction meets the factors of each token
            first), `instantiate` (one product per example first), `whole`; `in k slices` likewise.
        dot_flops: of the product with a direction.
    """

    path: str
    shape: tuple[int, ...]
    kind: str
    contraction: str
    flops: float
    stored_bytes: int
    peak_bytes: int
    dot: str
    dot_flops: float


@dataclass(frozen=True)
class Explanation:
    """Rows for every leaf; `str()` gives a table."""

    rows: tuple[LeafExplanation, ...]

    def __iter__(self) -> Iterator[LeafExplanation]:
        """Iterate over the rows."""
        return iter(self.rows)

    def __getitem__(self, path: str) -> LeafExplanation:
        """The row of a leaf."""
        return next(row for row in self.rows if row.path == path)

    def __str__(self) -> str:
        """A table with one line per leaf."""
        header = ("leaf", "shape", "kind", "gram", "MFLOP", "dot", "MFLOP", "stored MiB", "peak MiB")
        cells = [header] + [
            (
                r.path,
                "x".join(map(str, r.shape)) or "scalar",
                r.kind,
                r.contraction,
                f"{r.flops / 1e6:.3g}",
                r.dot,
                f"{r.dot_flops / 1e6:.3g}",
                f"{r.stored_bytes / 2**20:.3g}",
                f"{r.peak_bytes / 2**20:.3g}",
            )
            for r in self.rows
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        )


def explain_leaf(leaf: Factored) -> LeafExplanation:
    """Describe one leaf."""
    spec = leaf.spec
    if not spec.terms:
        return LeafExplanation(spec.path, spec.shape, spec.kind, "none", 0.0, 0, 0, "none", 0.0)
    name, plan = gram_plan(leaf)
    forms = [_dot_form(leaf, term) for term in spec.terms]
    arrays = {i: leaf.pool[i] for term in spec.terms for i, _ in term.operands}
    stored = sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays.values())
    return LeafExplanation(
        spec.path,
        spec.shape,
        spec.kind,
        _named(name, plan),
        plan.flops,
        stored,
        plan.peak_bytes,
        " + ".join(dict.fromkeys(_named(*form) for form in forms)),
        sum(plan.flops for _, plan in forms),
    )


def _named(form: str, plan: Plan) -> str:
    return form + (f" in {plan.slices} slices" if plan.slices > 1 else "")


def _dot_form(leaf: Factored, term: TermSpec) -> tuple[str, Plan]:
    """How one term meets a direction."""
    spec = leaf.spec
    operands = leaf.tensors(term)
    specs = (*(t.spec for t in operands), Spec(spec.out))
    sizes = sizes_of(operands, dict(spec.sizes))
    plan = plan_contraction(specs, (EXAMPLE,), sizes)
    if len(operands) == 1 and operands[0].spec.one_hot is None:
        return "whole", plan
    if plan.slice_label is not None:
        sizes = sizes.replacing(plan.slice_label, sizes[plan.slice_label] // plan.slices)
    products = {EXAMPLE, *spec.out}
    formed = intermediates(specs, (EXAMPLE,), sizes)
    early = any(products <= set(labels) and len(operands) not in members for members, labels in formed)
    return ("instantiate" if early else "per-token"), plan
