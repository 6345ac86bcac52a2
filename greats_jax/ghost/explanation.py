"""What the engine decided for each parameter leaf, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from greats_jax.ghost.contractions import Factored, gram_plan


class LeafExplanation(NamedTuple):
    """One row of `explain()`.

    Attributes:
        path: key path of the parameter.
        shape: its shape.
        kind: `factored` (operands of an outer product), `instantiated` (the product, smaller than its operands),
            `whole` (a vector kept per example), `materialized (ended at <primitive>)` (not recognised), `zero` or
            `constant`, or `left out` by `only`.
        contraction: how its Gram is computed, see `gram_plan`.
        flops: of the Gram.
        stored_bytes: of its operands; an operand shared by several leaves is counted at each.
        peak_bytes: largest intermediate of the Gram.
    """

    path: str
    shape: tuple[int, ...]
    kind: str
    contraction: str
    flops: float
    stored_bytes: int
    peak_bytes: int


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
        header = ("leaf", "shape", "kind", "gram", "MFLOP", "stored MiB", "peak MiB")
        cells = [header] + [
            (
                r.path,
                "x".join(map(str, r.shape)) or "scalar",
                r.kind,
                r.contraction,
                f"{r.flops / 1e6:.3g}",
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
        return LeafExplanation(spec.path, spec.shape, spec.kind, "none", 0.0, 0, 0)
    name, plan = gram_plan(leaf)
    arrays = {i: leaf.pool[i] for term in spec.terms for i, _ in term.operands}
    stored = sum(math.prod(a.shape) * a.dtype.itemsize for a in arrays.values())
    return LeafExplanation(
        spec.path,
        spec.shape,
        spec.kind,
        name + (f" in {plan.slices} slices" if plan.slices > 1 else ""),
        plan.flops,
        stored,
        plan.peak_bytes,
    )
