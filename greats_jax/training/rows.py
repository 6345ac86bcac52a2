"""Rows of a step: joined in one batch, spread over devices, and which of them count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from greats_jax.errors import ArgumentError
from greats_jax.ghost import Spread

Array = jax.Array
PyTree = Any
Valid = Callable[[PyTree], Array]


class RowLayout(NamedTuple):
    """The order of candidates and validation rows in one batch.

    Each of `parts` runs begins with its share of the candidates and ends with its share of the validation rows, so that
    a device that holds a run has some of both, and taking the two apart again moves nothing between devices.

    Attributes:
        n: number of candidates.
        m: number of validation rows, a multiple of `parts`.
        parts: number of runs.
    """

    n: int
    m: int
    parts: int

    @property
    def candidates(self) -> Array:
        """i32[n]: where each candidate is in the batch."""
        own, theirs = self.n // self.parts, self.m // self.parts
        return (jnp.arange(self.parts)[:, None] * (own + theirs) + jnp.arange(own)).ravel()

    @property
    def validation(self) -> Array:
        """i32[m]: where each validation row is in the batch."""
        own, theirs = self.n // self.parts, self.m // self.parts
        return (jnp.arange(self.parts)[:, None] * (own + theirs) + own + jnp.arange(theirs)).ravel()

    def join(self, x: Array, y: Array) -> Array:
        """[n, ...] and [m, ...] -> [n + m, ...]."""
        runs = [a.reshape(self.parts, -1, *a.shape[1:]) for a in (x, y)]
        return jnp.concatenate(runs, axis=1).reshape(self.n + self.m, *x.shape[1:])

    def part(self, x: Array) -> tuple[Array, Array]:
        """The inverse of `join`."""
        runs = x.reshape(self.parts, -1, *x.shape[1:])
        own = self.n // self.parts
        return runs[:, :own].reshape(self.n, *x.shape[1:]), runs[:, own:].reshape(self.m, *x.shape[1:])


def merge_rows(candidates: PyTree, validation: PyTree, spread: Spread | None) -> tuple[PyTree, RowLayout]:
    """Candidates and validation rows in one batch, and in which order."""
    a, b = (jax.tree_util.tree_flatten_with_path(t) for t in (candidates, validation))
    if a[1] != b[1]:
        raise ArgumentError(
            f"candidates and validation have different structures: {a[1]} and {b[1]}; merged scoring needs the same"
        )
    for (path, x), (_, y) in zip(a[0], b[0], strict=True):
        if x.shape[1:] != y.shape[1:] or x.dtype != y.dtype:
            raise ArgumentError(
                f"candidates and validation differ at {jax.tree_util.keystr(path) or '<root>'}: "
                f"{x.dtype}{list(x.shape)} and {y.dtype}{list(y.shape)}; "
                "merged scoring needs equal shapes after axis 0: pad them alike, or use validation='cached'"
            )
    layout = RowLayout(row_count(candidates), row_count(validation), parts_of(spread))
    if layout.n % layout.parts:
        raise ArgumentError(
            f"{layout.n} candidates cannot be dealt to {layout.parts} parts of the mesh in equal numbers: make the "
            "batch a multiple, or use validation='cached'"
        )
    return spread_rows(jax.tree.map(layout.join, candidates, validation), spread), layout


def row_count(rows: PyTree) -> int:
    """How many rows there are."""
    return len(jax.tree.leaves(rows)[0])


def parts_of(spread: Spread | None) -> int:
    """Into how many runs rows are cut."""
    return 1 if spread is None else spread.parts


def spread_rows(rows: PyTree, spread: Spread | None) -> PyTree:
    """The rows where they are computed with; on every device if they cannot be cut evenly."""
    if spread is None:
        return rows
    even = row_count(rows) % spread.parts == 0
    return jax.tree.map(spread.rows, rows) if even else spread.everywhere(rows)


def even_rows(rows: PyTree, spread: Spread | None) -> tuple[PyTree, Array]:
    """Rows in a number that can be cut evenly, the first repeated as needed, and bool[m], True for the originals."""
    m = row_count(rows)
    place = jnp.arange(m + -m % parts_of(spread))
    if m == len(place):
        return spread_rows(rows, spread), place < m
    return spread_rows(jax.tree.map(lambda x: jnp.take(x, place % m, axis=0), rows), spread), place < m


def valid_rows(is_valid: Valid | None, rows: PyTree) -> Array:
    """bool[b], all True without a test; its length also tells a rule that needs no signal how many rows there are."""
    n = len(jax.tree.leaves(rows)[0])
    return jnp.ones(n, bool) if is_valid is None else jax.vmap(is_valid)(rows)


def validation_facts(losses: Array, usable: Array, original: Array) -> tuple[Array, Array, Array, Array]:
    """Mean loss of the usable validation rows, whether there are any, how many, and how many were dropped.

    Args:
        losses: f32[m].
        usable: bool[m].
        original: bool[m], of `even_rows`.
    """
    used = usable.sum(dtype=jnp.int32)
    loss = jnp.where(usable, losses, 0.0).sum().astype(jnp.float32) / used
    return loss, used > 0, used, original.sum(dtype=jnp.int32) - used


def no_validation() -> tuple[Array, Array, Array, Array]:
    """The facts of a step that looks at no validation row."""
    zero = jnp.zeros((), jnp.int32)
    return jnp.asarray(jnp.nan, jnp.float32), jnp.asarray(True), zero, zero
