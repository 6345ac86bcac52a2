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

    def sliced(self, array: Array, example: int | None, axis: int | None) -> Array:
        """All examples of a slice along `axis` on each device; of the whole array where `axis` is None."""
        wanted = {} if example is None else {example: None}
        return self._constrain(array, wanted if axis is None else {**wanted, axis: self.axes})

    def flat(self, array: Array) -> Array:
        """[n, *shape] -> [n, size] in some order, each device with a slice of the parameters for all examples.

        An all-to-all, unless the array is sliced already. Only where there is an `axis_of` the shape.
        """
        axis = self.axis_of(array.shape[1:])
        assert axis is not None
        # With another axis in front of the cut one, flattening would gather the array again.
        return jnp.moveaxis(self.sliced(array, 0, axis + 1), axis + 1, 1).reshape(len(array), -1)

    def axis_of(self, shape: tuple[int, ...]) -> int | None:
        """The axis along which a parameter of this shape is sliced: the largest that divides evenly, if any does."""
        even = [i for i, size in enumerate(shape) if size % self.parts == 0]
        return max(even, key=lambda i: shape[i], default=None)

    def everywhere(self, tree: PyTree) -> PyTree:
        """Arrays that every device holds whole."""
        return lax.with_sharding_constraint(tree, NamedSharding(self.mesh, PartitionSpec()))

    def _constrain(self, array: Array, wanted: dict[int, Any]) -> Array:
        spec = PartitionSpec(*(wanted.get(i, _ANY) for i in range(array.ndim)))
        return lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))
