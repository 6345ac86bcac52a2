"""Rows spread over the devices of a mesh: which arrays stay where they are, and which cross to the others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Array = jax.Array
PyTree = Any

_ANY = PartitionSpec.UNCONSTRAINED


@dataclass(frozen=True)
class Spread:
    """The mesh axes over which examples are spread.

    Attributes:
        mesh: devices.
        axes: names of the mesh axes; the others cut parameters, which is left to the compiler.
    """

    mesh: Mesh
    axes: tuple[str, ...]

    @property
    def parts(self) -> int:
        """Number of groups of devices that hold different examples."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    def rows(self, array: Array, axis: int = 0) -> Array:
        """The array with `axis` cut over the devices."""
        return self._constrain(array, {axis: self.axes})

    def whole(self, array: Array, axis: int = 0) -> Array:
        """The array with `axis` whole on every device: examples that were spread are gathered."""
        return self._constrain(array, {axis: None})

    def turned(self, array: Array) -> Array:
        """[n, *shape] cut by examples -> [n, size] cut by parameters, in some order of them: an all-to-all.

        Each device then holds a slice of the parameters for every example. Only where `turns` says so.
        """
        axis = next(i for i, size in enumerate(array.shape) if i > 0 and size % self.parts == 0)
        turned = self._constrain(self.rows(array), {0: None, axis: self.axes})
        # With another axis in front of the cut one, flattening would gather the array again.
        return jnp.moveaxis(turned, axis, 1).reshape(len(array), -1)

    def turns(self, shape: tuple[int, ...]) -> bool:
        """Whether some axis of a parameter of this shape divides evenly over the devices."""
        return any(size % self.parts == 0 for size in shape)

    def everywhere(self, tree: PyTree) -> PyTree:
        """Arrays that every device holds whole."""
        return lax.with_sharding_constraint(tree, NamedSharding(self.mesh, PartitionSpec()))

    def _constrain(self, array: Array, wanted: dict[int, Any]) -> Array:
        spec = PartitionSpec(*(wanted.get(i, _ANY) for i in range(array.ndim)))
        return lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))
