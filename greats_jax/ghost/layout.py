"""Static description of factored gradients: which operands make up each parameter leaf, and with which labels.

This is the hashable half of `PerExampleGrads`; the arrays are the other half. Symbolic terms (`terms.py`) become
integer-labelled specs here, once all terms of a leaf have been cut into the same axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from greats_jax.ghost.einsum import Labels, Spec
from greats_jax.ghost.terms import Atom, Axis, MismatchError, Operand, Substitution, Term, Value

EXAMPLE = 0


@dataclass(frozen=True)
class TermSpec:
    """One einsum term: operand positions in the pool, their labels, and a coefficient."""

    operands: tuple[tuple[int, Spec], ...]
    coefficient: float


@dataclass(frozen=True)
class LeafSpec:
    """One parameter leaf.

    Attributes:
        path: key path in the parameter tree, e.g. `['layers']['q_proj']['kernel']`.
        shape: parameter shape.
        dtype: parameter dtype name.
        splits: each parameter axis as the labels it is made of, major to minor; shared by all terms.
        sizes: size of each label in `splits`.
        stack: label of the leading axis if the leaf's layers are stacked by a scan, else None.
        terms: the sum; empty for a gradient that is always zero. None for a constant (integer or boolean) leaf.
        kind: what the walk found, for `explain()`.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    splits: tuple[Labels, ...]
    sizes: tuple[tuple[int, int], ...]
    stack: int | None
    terms: tuple[TermSpec, ...] | None
    kind: str

    @property
    def out(self) -> Labels:
        """Labels of the parameter, flattened."""
        return tuple(label for axis in self.splits for label in axis)

    @property
    def atom_shape(self) -> tuple[int, ...]:
        """Parameter shape cut into labels."""
        sizes = dict(self.sizes)
        return tuple(sizes[label] for label in self.out)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class OperandPool:
    """Collects the distinct operands of all leaves; an input shared by several weights is stored once."""

    def __init__(self) -> None:
        self.entries: dict[tuple[Value, tuple[int, ...], int], int] = {}

    def add(self, operand: Operand) -> int:
        """Position of an operand, cut into its atoms; the key ends with the number of classes, 0 if not ids."""
        shape = tuple(atom.size for axis in operand.axes for atom in axis)
        classes = operand.one_hot.size if operand.one_hot is not None else 0
        return self.entries.setdefault((operand.value, shape, classes), len(self.entries))


def align(terms: list[Term], n: int) -> tuple[list[Term], Atom]:
    """Cut the parameter axes of all terms into the same atoms and give them one example atom.

    Raises:
        MismatchError: a term's leading axis is not one axis over the examples, or axes cannot be cut alike.
    """
    example = Atom(n)
    prepared = []
    for term in terms:
        lead = term.out[0]
        if n == 1:
            first = term.operands[0]
            seen = Operand(first.value, ((example,), *first.axes), first.one_hot)
            prepared.append(Term((seen, *term.operands[1:]), ((example,), *term.out[1:]), term.coefficient))
        elif len(lead) == 1 and any(lead[0] in axis for op in term.operands for axis in op.axes):
            prepared.append(term)
        else:
            raise MismatchError
    table = Substitution()
    table_pairs = [(a, b) for other in prepared[1:] for a, b in zip(prepared[0].out, other.out, strict=True)]
    for a, b in table_pairs:
        table.unify(a, b)
    aligned = [term.substitute(table) for term in prepared]
    return aligned, aligned[0].out[0][0]


def describe_leaf(
    path: str,
    shape: tuple[int, ...],
    dtype: str,
    terms: list[Term],
    n: int,
    pool: OperandPool,
    kind: str,
    stacked: bool,
) -> LeafSpec:
    """Turn aligned symbolic terms into a hashable spec, adding their operands to the pool."""
    if not terms:
        return LeafSpec(path, shape, dtype, *_plain_axes(shape), None, (), "zero")
    aligned, example = align(terms, n)
    numbers: dict[Atom, int] = {example: EXAMPLE}

    def label(atom: Atom) -> int:
        return numbers.setdefault(atom, len(numbers))

    def labels(axis: Axis) -> Labels:
        return tuple(label(atom) for atom in axis)

    splits = tuple(labels(axis) for axis in aligned[0].out[1:])
    out = [x for axis in splits for x in axis]
    if len(set(out)) != len(out) or EXAMPLE in out:
        raise MismatchError  # a diagonal: an axis of the parameter is tied to another one or to the examples
    sizes = tuple((label(atom), atom.size) for axis in aligned[0].out[1:] for atom in axis)
    specs = []
    for term in aligned:
        operands = []
        for op in term.operands:
            flat = tuple(atom for axis in op.axes for atom in axis)
            if len(set(flat)) != len(flat):
                raise MismatchError
            spec = Spec(tuple(label(a) for a in flat), None if op.one_hot is None else label(op.one_hot))
            operands.append((pool.add(op), spec))
        held = {x for _, spec in operands for x in spec.all_labels}
        if not set(out) <= held or EXAMPLE not in held:
            raise MismatchError
        specs.append(TermSpec(tuple(operands), term.coefficient))
    stack = splits[0][0] if stacked and splits and len(splits[0]) == 1 else None
    return LeafSpec(path, shape, dtype, splits, sizes, stack, tuple(specs), kind)


def constant_leaf(path: str, shape: tuple[int, ...], dtype: str) -> LeafSpec:
    """An integer or boolean leaf: it has no gradient and takes part in no contraction."""
    return LeafSpec(path, shape, dtype, *_plain_axes(shape), None, None, "constant")


def _plain_axes(shape: tuple[int, ...]) -> tuple[tuple[Labels, ...], tuple[tuple[int, int], ...]]:
    splits = tuple(() if size == 1 else (i + 1,) for i, size in enumerate(shape))
    return splits, tuple((i + 1, size) for i, size in enumerate(shape) if size != 1)


def finest_splits(a: LeafSpec, b: LeafSpec) -> tuple[tuple[int, ...], ...]:
    """Sizes per parameter axis after cutting both leaves' axes alike."""
    table = Substitution()
    axes = []
    for spec in (a, b):
        sizes = dict(spec.sizes)
        axes.append([tuple(Atom(sizes[x]) for x in axis) for axis in spec.splits])
    for left, right in zip(*axes, strict=True):
        table.unify(left, right)
    return tuple(tuple(atom.size for atom in table.axis(axis)) for axis in axes[0])


def split_sizes(leaf: LeafSpec) -> tuple[tuple[int, ...], ...]:
    """Sizes of the labels of every parameter axis."""
    sizes = dict(leaf.sizes)
    return tuple(tuple(sizes[x] for x in axis) for axis in leaf.splits)
