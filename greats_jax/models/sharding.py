"""Where the arrays of a decoder live on a mesh: rules for the logical axes that each family names in its table."""

from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from greats_jax.models.config import DecoderConfig
from greats_jax.models.families import family_named

DATA, FSDP, TENSOR = "data", "fsdp", "tensor"
"""Mesh axes: copies of the model, slices of its storage, slices of its computation."""

RULES = {"width": FSDP, "vocab": TENSOR, "heads": TENSOR, "kv_heads": TENSOR, "ffn": TENSOR}
"""The mesh axis that cuts each logical axis. Rows of a batch are cut by `data` and `fsdp` together."""


def partition_specs(config: DecoderConfig, tree: Any, mesh_shape: dict[str, int]) -> Any:
    """How a tree of parameters is cut.

    A low-rank adapter is cut like the side of the kernel that it touches; biases like the kernel's output. An axis that
    cannot be cut evenly, or only through a head, stays whole.

    Args:
      config: of the decoder that the tree belongs to.
      tree: parameters, adapters or frozen arrays in the nested dicts of `partition`; only shapes are looked at.
      mesh_shape: sizes of the mesh axes `data`, `fsdp` and `tensor`.

    Returns:
      A tree of the same structure of `PartitionSpec`.
    """
    units = {
        "width": config.width,
        "vocab": config.vocab_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "ffn": config.ffn_width,
    }
    table = family_named(config.family).axes

    def spec(path: tuple, leaf: Any) -> PartitionSpec:
        names = [str(key.key) for key in path if hasattr(key, "key")]
        axes = _axes_of(table, names)
        shape = leaf.shape[-len(axes) :] if axes else ()
        cut = [_mesh_axis(axis, size, units, mesh_shape) for axis, size in zip(axes, shape, strict=True)]
        return PartitionSpec(*(None,) * (len(leaf.shape) - len(cut)), *cut)

    return jax.tree_util.tree_map_with_path(spec, tree)


def gathered(config: DecoderConfig, tree: Any, mesh: Mesh) -> Any:
    """Arrays of `partition_specs` no longer cut along `fsdp`, as a layer computes with them (inside jit).

    Args:
      config: of the decoder.
      tree: arrays, or slices of stacked ones without the axis of layers.
      mesh: the mesh they are cut over.
    """
    shape = dict(mesh.shape)
    if shape[FSDP] == 1:
        return tree
    specs = partition_specs(config, tree, {**shape, FSDP: 1})
    return jax.tree.map(lambda x, spec: lax.with_sharding_constraint(x, NamedSharding(mesh, spec)), tree, specs)


def _axes_of(table: Any, names: list[str]) -> tuple[str | None, ...]:
    """Logical axes of an array by its path, as ["layers", "self_attn", "q_proj", "lora", "a"]."""
    for end in range(len(names), 0, -1):
        owner = ".".join(names[:end])
        axes = next((axes for name, axes in table.items() if owner == name or owner.endswith("." + name)), None)
        if axes is None:
            continue
        match names[end:]:
            case [] | ["kernel", *_]:
                return axes
            case ["bias"]:
                return axes[-1:]
            case ["lora", "a"]:
                return (axes[0], None)
            case ["lora", "b"]:
                return (None, axes[1])
    return ()


def _mesh_axis(axis: str | None, size: int, units: dict[str, int], mesh_shape: dict[str, int]) -> str | None:
    name = None if axis is None else RULES[axis]
    if axis is None or name is None or mesh_shape[name] == 1:
        return None
    return name if size % mesh_shape[name] == 0 and units[axis] % mesh_shape[name] == 0 else None
