"""Rows of tokens in few shapes: lengths to pad to, batches of neighbours in length, and their place on a mesh."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from greats_jax.models.sharding import DATA, FSDP

Check = Callable[[int], None]
"""Called before every batch with the number of prompts that are done; raises what shall end the work."""

_SMALLEST = 16  # tokens


def never(done: int) -> None:
    """The `Check` that lets all work go on."""


def padded_length(length: int) -> int:
    """The length to pad to: the next power of two, or three quarters of it, which wastes at most a third."""
    power = max(_SMALLEST, 1 << (length - 1).bit_length())
    return power // 4 * 3 if power > _SMALLEST and length <= power // 4 * 3 else power


def padded(rows: Sequence[Sequence[int]], count: int, length: int) -> np.ndarray:
    """i32[count, length]: the rows on the left, zeros where there is nothing."""
    ids = np.zeros((count, length), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids


def batches_by_length(lengths: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Numbers of at most `batch` neighbours in length; the longest first, so that memory runs out at once or never."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


def rows_of_batch(batch: int, mesh: Mesh | None) -> int:
    """The number of rows that holds a batch and can be dealt to the devices of a mesh in equal numbers."""
    parts = 1 if mesh is None else mesh.shape[DATA] * mesh.shape[FSDP]
    return -(-batch // parts) * parts


def put_rows(mesh: Mesh | None, rows: Any) -> Any:
    """Arrays of the host, the same on every process, with their rows (axis 0) spread over a mesh, if there is one."""
    if mesh is None:
        return rows
    sharding = NamedSharding(mesh, PartitionSpec((DATA, FSDP)))
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), rows)


def for_the_host(mesh: Mesh | None, results: Any) -> Any:
    """Inside jit: results that every process will read, so every device gets the whole of them."""
    if mesh is None:
        return results
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda x: lax.with_sharding_constraint(x, everywhere), results)
