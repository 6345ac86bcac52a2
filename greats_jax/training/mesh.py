"""The mesh of devices a run uses, and where its arrays live there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from greats_jax.errors import ConfigError
from greats_jax.models import DecoderConfig
from greats_jax.models.sharding import DATA, FSDP, TENSOR, partition_specs
from greats_jax.training.config import MeshConfig
from greats_jax.training.state import TrainState

PyTree = Any

ROW_AXES = (DATA, FSDP)
"""Mesh axes over which the rows of a batch are spread."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices as a mesh with the axes `data`, `fsdp` and `tensor`.

    Args:
        config: Sizes; one of them may be -1 and takes the devices that the others leave.
        devices: Which; None for all devices of all processes.

    Raises:
        ConfigError: The sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    # The data axis comes first, so that processes, whose devices are neighbours, differ along it.
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * 3, devices=devices)


def mesh_shape(config: MeshConfig, count: int) -> dict[str, int]:
    """Sizes of the mesh axes for a number of devices.

    Raises:
        ConfigError: They do not multiply to it.
    """
    sizes = {DATA: config.data, FSDP: config.fsdp, TENSOR: config.tensor}
    open_axes = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    written = ", ".join(f"{name}: {size}" for name, size in sizes.items())
    if len(open_axes) > 1:
        raise ConfigError(f"mesh: {{{written}}} leaves more than one axis open; give all but one a number")
    if open_axes:
        sizes[open_axes[0]] = max(1, count // fixed)
    if math.prod(sizes.values()) != count:
        wanted = f"a multiple of {fixed}" if open_axes else f"exactly {fixed}"
        raise ConfigError(f"mesh: {{{written}}} needs {wanted} devices, but there are {count}: change the sizes")
    return sizes


@dataclass(frozen=True)
class Placement:
    """Where the arrays of a run live.

    Attributes:
        mesh: The devices.
        model: Shape of the decoder, which the rules for its parameters need.
    """

    mesh: Mesh
    model: DecoderConfig

    @property
    def rows(self) -> NamedSharding:
        """Of batches: axis 0 over `data` and `fsdp`."""
        return NamedSharding(self.mesh, PartitionSpec(ROW_AXES))

    @property
    def replicated(self) -> NamedSharding:
        """Of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def row_shards(self) -> int:
        """Into how many parts the rows of a batch are cut."""
        return math.prod(self.mesh.shape[axis] for axis in ROW_AXES)

    @property
    def writes(self) -> bool:
        """Whether this process writes files and reports: one of all does."""
        return jax.process_index() == 0

    def parameters(self, tree: PyTree) -> PyTree:
        """Shardings of parameters or frozen arrays, from their paths and shapes."""
        specs = partition_specs(self.model, tree, dict(self.mesh.shape))
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), specs, is_leaf=_is_spec)

    def state(self, state: TrainState) -> TrainState:
        """Shardings of a training state: what is shaped like the parameters is cut like them, the rest is everywhere.

        Args:
            state: Arrays or their shapes.
        """
        params = self.parameters(state.params)
        by_path = {_path(path): s for path, s in jax.tree_util.tree_flatten_with_path(params)[0]}
        shapes = {_path(path): x.shape for path, x in jax.tree_util.tree_flatten_with_path(state.params)[0]}

        def like_parameters(path: tuple, leaf: Any) -> NamedSharding:
            # The moments of an optimizer are trees like the parameters somewhere inside its state.
            names = _path(path)
            found = (names[i:] for i in range(len(names)) if names[i:] in by_path)
            name = next((n for n in found if shapes[n] == leaf.shape), None)
            return self.replicated if name is None else by_path[name]

        return jax.tree_util.tree_map_with_path(like_parameters, state)._replace(params=params)


def _path(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)
