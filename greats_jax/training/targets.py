"""How validation rows add up to what candidates are aligned with: one target task, or several that share a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from greats_jax.errors import ArgumentError
from greats_jax.training.weighting import weighted_rows

Array = jax.Array
PyTree = Any


@dataclass(frozen=True)
class Targets:
    """Several target tasks among the validation rows.

    Attributes:
        of: `of(row) -> i32[]`, the number of the task that a validation row belongs to, from 0.
        count: number of tasks.
        combine: `mean`: a candidate's alignment is the mean of those with each task, however many rows a task has.
            `max`: that with the task it helps most, as LESS does. `worst`: that with the task whose validation loss is
            highest now, so that the task furthest behind is served first.
    """

    of: Callable[[PyTree], Array]
    count: int
    combine: Literal["mean", "max", "worst"] = "mean"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.count < 1:
            raise ArgumentError(f"Targets(count={self.count}): there is at least one task")
        if self.combine not in ("mean", "max", "worst"):
            raise ArgumentError(f"Targets(combine={self.combine!r}): choose 'mean', 'max' or 'worst'")


def validation_weights(targets: Targets | None, losses: Array, usable: Array, rows: PyTree) -> Array:
    """The weights that make a validation gradient of the rows' gradients: f32[m], or f32[m, tasks] for `max`.

    Args:
        targets: the tasks; None for one.
        losses: f32[m].
        usable: bool[m]; other rows get weight 0. A task without usable rows takes no part.
        rows: the validation rows.
    """
    if targets is None:
        return usable / jnp.maximum(usable.sum(), 1)
    member = (jax.vmap(targets.of)(rows)[:, None] == jnp.arange(targets.count)) & usable[:, None]
    sizes = member.sum(0)
    means = member / jnp.maximum(sizes, 1)
    if targets.combine == "max":
        return means
    if targets.combine == "mean":
        return means.sum(1) / jnp.maximum((sizes > 0).sum(), 1)
    behind = jnp.where(usable, losses, 0.0) @ means
    return means[:, jnp.argmax(jnp.where(sizes > 0, behind, -jnp.inf))]


def aligned(table: Array, weights: Array) -> Array:
    """Alignment of the candidates, f32[n], from inner products with every validation row, f32[m, n].

    Args:
        table: `<h_v, g_i>`.
        weights: of `validation_weights`; a row of weight 0 contributes exactly 0, also when it is not finite.
    """
    if weights.ndim == 1:
        return weighted_rows(table, weights)
    by_task = jax.vmap(weighted_rows, in_axes=(None, 1))(table, weights)
    present = (weights > 0).any(0)
    best = jnp.where(present[:, None], by_task, -jnp.inf).max(0)
    return jnp.where(present.any(), best, 0.0)  # as with one task: without usable rows nobody is aligned
