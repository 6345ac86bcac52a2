"""Symbolic per-example gradients: a gradient as a sum of einsum terms over values of a jaxpr.

A `Term` names values (variables of a flat jaxpr, or values inside a scan body) and labels their axes with `Atom`s.
Axes that share an atom are multiplied together; atoms missing from the output are summed. View operations (transpose,
reshape, a leading scan axis) only relabel: a reshape splits atoms or groups them, nothing is computed. An axis of
size 1 carries no atom.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import jax.extend.core as jex


class Atom:
    """An axis label with a size; two atoms are equal only if they are the same object."""

    __slots__ = ("size",)

    def __init__(self, size: int):
        self.size = size


Axis: TypeAlias = tuple[Atom, ...]  # major to minor; () is an axis of size 1
Axes: TypeAlias = tuple[Axis, ...]


@dataclass(frozen=True)
class Stacked:
    """A value inside a scan body, collected over the iterations into an array with a leading axis."""

    eqn: jex.JaxprEqn
    inner: Value


Value: TypeAlias = "jex.Var | Stacked"


@dataclass(frozen=True)
class Operand:
    """A value with labelled axes; with `one_hot`, its integers stand for one-hot vectors along that atom."""

    value: Value
    axes: Axes
    one_hot: Atom | None = None

    def size(self) -> int:
        """Number of stored elements."""
        return math.prod(atom.size for axis in self.axes for atom in axis)


@dataclass(frozen=True)
class Term:
    """`coefficient` times the product of the operands, summed over the atoms that are not in `out`."""

    operands: tuple[Operand, ...]
    out: Axes
    coefficient: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether the term is one stored array seen through views: nothing was factored."""
        return len(self.operands) == 1 and self.operands[0].one_hot is None

    @property
    def is_view(self) -> bool:
        """Whether every atom of a plain term is in its output, exactly once."""
        if not self.is_plain or self.coefficient != 1.0:
            return False
        inside = [atom for axis in self.operands[0].axes for atom in axis]
        outside = [atom for axis in self.out for atom in axis]
        return len(inside) == len(outside) and set(inside) == set(outside)

    @property
    def is_joint(self) -> bool:
        """Whether operands share an axis of the output, as those of a weight's gradient share the examples."""
        axes = [{atom for axis in op.axes for atom in axis} for op in self.operands]
        out = {atom for axis in self.out for atom in axis}
        return any(a & b & out for i, a in enumerate(axes) for b in axes[i + 1 :])

    @property
    def summed(self) -> set[Atom]:
        """Atoms that are not in the output."""
        inside = {atom for op in self.operands for axis in op.axes for atom in axis}
        return inside - {atom for axis in self.out for atom in axis}

    def substitute(self, table: Substitution) -> Term:
        """Relabel by a substitution found by `unify`."""
        operands = tuple(
            replace(op, axes=table.axes(op.axes), one_hot=table.single(op.one_hot)) for op in self.operands
        )
        return replace(self, operands=operands, out=table.axes(self.out))


class MismatchError(Exception):
    """Two axes cannot be cut into the same factors; the caller falls back to materialising."""


class Substitution:
    """What each atom has been replaced by while axes were made equal."""

    def __init__(self) -> None:
        self._table: dict[Atom, Axis] = {}

    def axis(self, axis: Axis) -> Axis:
        """An axis in terms of the current atoms."""
        return tuple(
            leaf for atom in axis for leaf in (self.axis(self._table[atom]) if atom in self._table else (atom,))
        )

    def axes(self, axes: Axes) -> Axes:
        """Several axes in terms of the current atoms."""
        return tuple(self.axis(axis) for axis in axes)

    def single(self, atom: Atom | None) -> Atom | None:
        """An atom that must not have been split (the class axis of a one-hot operand)."""
        if atom is None:
            return None
        found = self.axis((atom,))
        if len(found) != 1:
            raise MismatchError
        return found[0]

    def unify(self, left: Axis, right: Axis) -> None:
        """Make two axes of equal length the same sequence of atoms, splitting atoms where needed."""
        a, b = list(self.axis(left)), list(self.axis(right))
        while a and b:
            x, y = a.pop(), b.pop()
            if x is y:
                continue
            if x.size == y.size:
                self._table[y] = (x,)
            elif x.size % y.size == 0:
                a.append(self._split(x, y))
            elif y.size % x.size == 0:
                b.append(self._split(y, x))
            else:
                raise MismatchError
            a, b = list(self.axis(tuple(a))), list(self.axis(tuple(b)))
        if a or b:
            raise MismatchError

    def _split(self, whole: Atom, minor: Atom) -> Atom:
        major = Atom(whole.size // minor.size)
        self._table[whole] = (major, minor)
        return major


def unify_all(pairs: Iterable[tuple[Axis, Axis]]) -> Substitution:
    """A substitution under which the two axes of every pair are equal."""
    table = Substitution()
    for left, right in pairs:
        table.unify(left, right)
    return table


def fresh_axes(shape: Sequence[int]) -> Axes:
    """One new atom per axis, none for axes of size 1."""
    return tuple(() if size == 1 else (Atom(size),) for size in shape)


def whole(value: Value, shape: Sequence[int]) -> Term:
    """A stored array taken as it is."""
    axes = fresh_axes(shape)
    return Term((Operand(value, axes),), axes)


def regroup(term: Term, shape: Sequence[int]) -> Term:
    """The term after a reshape of its output to `shape`."""
    flat = tuple(atom for axis in term.out for atom in axis)
    axes = fresh_axes(shape)
    table = Substitution()
    table.unify(tuple(atom for axis in axes for atom in axis), flat)
    return replace(term.substitute(table), out=table.axes(axes))
