"""Contractions of one leaf whose layers are stacked by a scan, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax

from greats_jax.errors import ArgumentError
from greats_jax.ghost import contractions as c
from greats_jax.ghost.factored import Factored

if TYPE_CHECKING:
    from greats_jax.ghost.per_example import PerExampleGrads

Array = jax.Array


@dataclass(frozen=True)
class LayerContractions:
    """Contractions of a stacked leaf that keep the layer axis in front."""

    leaf: Factored
    keep: tuple[int, ...]

    def gram(self) -> Array:
        """Inner products of all pairs in each layer: f32[layers, n, n]."""
        return _present(c.gram(self.leaf, self.keep))

    def cross(self, other: PerExampleGrads) -> Array:
        """Inner products with other examples in each layer: f32[layers, n, m]."""
        return _present(c.cross(self.leaf, Factored(other.leaves[0], other.operands), self.keep))

    def dot(self, direction: Array) -> Array:
        """Inner products with a direction of the leaf's shape, in each layer: f32[layers, n]."""
        return _present(c.dot(self.leaf, direction, self.keep))

    def squared_norms(self) -> Array:
        """Squared norms in each layer: f32[layers, n]."""
        return _present(c.squared_norms(self.leaf, self.keep))


def _present(value: Array | None) -> Array:
    if value is None:
        raise ArgumentError("this leaf has no gradient: its terms are zero for every example")
    return value
