"""The mesh of devices a run uses, and where its arrays live there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from greats_jax.errors import ConfigError
from greats_jax.ghost import Spread
from greats_jax.models import DecoderConfig
from greats_jax.models.sharding import DATA, FSDP, TENSOR, partition_specs
from greats_jax.training.config import MeshConfig
from greats_jax.training.placement import Placement
from greats_jax.training.state import TrainState

PyTree = Any

ROW_AXES = (DATA, FSDP)
"""Mesh axes over which the rows of a batch are spread."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """The devices as a mesh with the axes `data`, `fsdp` and `tensor`.

    Args:
        config: Sizes; one of them may be -1 and takes the devices that the others leave.
        devices: Which; None for all devices of all processes. A mesh without -1 may use the first of them only, if they
            belong to one process.

    Raises:
        ConfigError: The sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    used = math.prod(shape.values())
    if used < len(devices) and jax.process_count() > 1:
        raise ConfigError(f"mesh: {_written(shape)} leaves {len(devices) - used} devices of other processes idle")
    # The data axis comes first, so that processes, whose devices are neighbours, differ along it.
    names = tuple(shape)
    return jax.make_mesh(tuple(shape.values()), names, axis_types=(AxisType.Auto,) * 3, devices=devices[:used])


def mesh_shape(config: MeshConfig, count: int) -> dict[str, int]:
    """Sizes of the mesh axes for a number of devices.

    Raises:
        ConfigError: They need more devices, or a size of -1 cannot be a whole number.
    """
    sizes = {DATA: config.data, FSDP: config.fsdp, TENSOR: config.tensor}
    asked = _written(sizes)
    open_axes = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if any(size < 1 and size != -1 for size in sizes.values()):
        raise ConfigError(f"mesh: {asked} has a size below 1; -1 stands for the devices that the others leave")
    if len(open_axes) > 1:
        raise ConfigError(f"mesh: {asked} leaves more than one axis open; give all but one a number")
    if open_axes:
        if count % fixed:
            raise ConfigError(f"mesh: {asked} needs a multiple of {fixed} devices, but there are {count}")
        return sizes | {open_axes[0]: count // fixed}
    if fixed > count:
        raise ConfigError(f"mesh: {asked} needs {fixed} devices, but there are {count}: set one of the sizes to -1")
    return sizes


def _written(sizes: dict[str, int]) -> str:
    return "{" + ", ".join(f"{name}: {size}" for name, size in sizes.items()) + "}"


def row_parts(mesh: Mesh) -> int:
    """Into how many parts a mesh cuts the rows of a batch."""
    return Spread(mesh, ROW_AXES).parts


def place_decoder(mesh: Mesh, model: DecoderConfig, state: TrainState, frozen: PyTree) -> Placement:
    """Where a run on a decoder keeps its arrays, by the rules of `models.sharding`.

    What is shaped like a parameter (moments, the validation direction) is cut like it; the rest is on every device.

    Args:
        mesh: Of `make_mesh`.
        model: Shape of the decoder.
        state: Arrays or their shapes, like `frozen`.
        frozen: Of `partition`.
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    params = decoder_shardings(mesh, model, state.params)
    shapes = {_path(path): x.shape for path, x in jax.tree_util.tree_flatten_with_path(state.params)[0]}
    known = {_path(path): s for path, s in jax.tree_util.tree_flatten_with_path(params)[0]}

    def like_parameter(path: tuple, leaf: Any) -> NamedSharding:
        names = _path(path)
        # The moments of an optimizer are trees like the parameters somewhere inside its state.
        ends = (names[i:] for i in range(len(names)))
        return next((known[end] for end in ends if shapes.get(end) == leaf.shape), everywhere)

    placed = jax.tree_util.tree_map_with_path(like_parameter, state)
    # A rule's memory may appear only in the first step: one sharding stands for whatever it is.
    return Placement(mesh, placed._replace(memory=everywhere), decoder_shardings(mesh, model, frozen), ROW_AXES)


def decoder_shardings(mesh: Mesh, model: DecoderConfig, tree: PyTree) -> PyTree:
    """Shardings of a decoder's parameters or frozen arrays, from their paths and shapes."""
    specs = partition_specs(model, tree, dict(mesh.shape))
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def _path(path: tuple) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
