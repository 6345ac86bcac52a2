"""Arrays built straight into their shards, so that neither a device nor the host ever holds more than one part."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Index = tuple[slice, ...]


def built(
    shape: tuple[int, ...], dtype: Any, sharding: jax.sharding.Sharding | None, read: Callable[[Index], np.ndarray]
) -> jax.Array:
    """The array whose blocks `read` gives.

    `jax.make_array_from_callback` gathers the blocks of all devices of this process before it hands over the first;
    here one block is on the host at a time, and one that several devices hold is read once.

    Args:
      shape: of the whole array.
      dtype: of the blocks.
      sharding: where the blocks go; only those of this process's devices are read. None for the default device.
      read: `read(index) -> block`, for one slice with explicit bounds for each axis.
    """
    if sharding is None:
        return jnp.asarray(read(tuple(slice(0, size) for size in shape)))
    holders: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    parts = []
    for bounds, devices in holders.items():
        block = read(tuple(slice(*bound) for bound in bounds))
        # Waiting lets go of the host's block before the next one is read.
        parts += jax.block_until_ready([jax.device_put(block, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, parts, dtype=dtype)
