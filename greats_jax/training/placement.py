"""Where the arrays of a step live on a mesh of devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from greats_jax.ghost import Spread
from greats_jax.training.state import TrainState

PyTree = Any


@dataclass(frozen=True)
class Placement:
    """Where the arrays of a step live.

    Attributes:
        mesh: The devices, with Auto axes.
        state: Shardings of the training state: a `TrainState` of NamedShardings, one of which may stand for a subtree.
        frozen: Shardings of the frozen pytree, likewise.
        row_axes: Mesh axes over which the rows of a batch are spread.
    """

    mesh: Mesh
    state: TrainState
    frozen: PyTree
    row_axes: tuple[str, ...]

    @property
    def rows(self) -> NamedSharding:
        """Of batches: axis 0 over the row axes."""
        return NamedSharding(self.mesh, PartitionSpec(self.row_axes))

    @property
    def everywhere(self) -> NamedSharding:
        """Of what every device holds whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def row_parts(self) -> int:
        """Into how many parts the rows of a batch are cut."""
        return Spread(self.mesh, self.row_axes).parts

    @property
    def spread(self) -> Spread | None:
        """How rows are spread; None if they are not."""
        return Spread(self.mesh, self.row_axes) if self.row_parts > 1 else None

    def put_rows(self, rows: PyTree) -> PyTree:
        """Rows from the host, the same on every process; each copies to its devices only what they hold.

        Rows that cannot be cut evenly go to every device.

        Args:
            rows: Arrays of the host or of one of its devices, rows on axis 0; None stays None.
        """

        def put(array: Any) -> jax.Array:
            x = np.asarray(array)
            sharding = self.everywhere if x.shape[0] % self.row_parts else self.rows
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(put, rows)


def on_host(tree: PyTree, placement: Placement) -> PyTree:
    """Arrays that this process can read, all of them: those cut over several processes are gathered one by one.

    Cost: with several processes, memory for all of it on each host, and for the largest array on every device.
    """
    if jax.process_count() == 1:
        return tree
    gather = jax.jit(lambda x: x, out_shardings=placement.everywhere)
    return jax.tree.map(lambda x: np.asarray(gather(x)), tree)
