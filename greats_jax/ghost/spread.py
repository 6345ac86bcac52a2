"""Rows spread over the devices of a mesh: which arrays stay where they are, and which cross to the others."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
        sharing: names of others whose devices share in slices of parameters that hold all examples; none by default.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    sharing: tuple[str, ...] = ()

    def shared(self) -> Spread:
        """The same, with all devices sharing in slices.

        Without, devices that hold the same examples form the same products: for all parameters of an 8B-shaped model on
        8 x 8 devices 34 instead of 14 TFLOP each. Products that are stored are sliced for next to nothing, and then the
        compiler gathers more to share them (11.6 instead of 6.3 GiB with adapters in place of all parameters).
        """
        return replace(self, sharing=tuple(name for name in self.mesh.axis_names if name not in self.axes))

    @property
    def parts(self) -> int:
        """Number of groups of devices that hold different examples."""
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    @property
    def copies(self) -> int:
        """How many devices hold the same examples."""
        return self.mesh.size // self.parts

    def rows(self, array: Array, axis: int = 0) -> Array:
        """The array with `axis` cut over the devices."""
        return self._constrain(array, {axis: self.axes})

    def whole(self, array: Array, axis: int = 0) -> Array:
        """The array with `axis` whole on every device: examples that were spread are gathered."""
        return self._constrain(array, {axis: None})

    def sliced(self, array: Array, example: int | None, axis: int | None) -> Array:
        """All examples of a slice along `axis` on each device; of the whole array where `axis` is None."""
        wanted = {} if example is None else {example: None}
        if axis is None:
            return self._constrain(array, wanted)
        even = array.shape[axis] % math.prod(self.mesh.shape[name] for name in (*self.sharing, *self.axes)) == 0
        # Those that cut parameters already come first, so that their cuts stay where they are.
        return self._constrain(array, {**wanted, axis: (*self.sharing, *self.axes) if even else self.axes})

    def flat(self, array: Array) -> Array:
        """`[n, *shape]` -> `[n, size]` in some order, each device with a slice of the parameters for all examples.

        An all-to-all, unless the array is sliced already. Only where there is an `axis_of` the shape.
        """
        axis = self.axis_of(array.shape[1:])
        assert axis is not None
        # With another axis in front of the cut one, flattening would gather the array again.
        return jnp.moveaxis(self.sliced(array, 0, axis + 1), axis + 1, 1).reshape(len(array), -1)

    def axis_of(self, shape: tuple[int, ...]) -> int | None:
        """The axis along which a parameter of this shape is sliced, if any divides evenly.

        The largest, and rather one that all devices divide than only those with different examples.
        """
        even = [i for i, size in enumerate(shape) if size % self.parts == 0]
        return max(even, key=lambda i: (shape[i] % self.mesh.size == 0, shape[i]), default=None)

    def everywhere(self, tree: PyTree) -> PyTree:
        """Arrays that every device holds whole."""
        return lax.with_sharding_constraint(tree, NamedSharding(self.mesh, PartitionSpec()))

    def _constrain(self, array: Array, wanted: dict[int, Any]) -> Array:
        spec = PartitionSpec(*(wanted.get(i, _ANY) for i in range(array.ndim)))
        return lax.with_sharding_constraint(array, NamedSharding(self.mesh, spec))
