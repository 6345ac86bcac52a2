"""The compiled programs of a run, shared by runs that differ in their seeds, tasks or data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

from greats_jax.data import DataConfig
from greats_jax.models import combine
from greats_jax.tasks import TaskConfig
from greats_jax.training.config import CheckpointConfig, GuardConfig, TrainConfig
from greats_jax.training.configured_step import configured_step
from greats_jax.training.evaluation import LossesOf, row_losses
from greats_jax.training.losses import language_model_loss
from greats_jax.training.placement import Placement
from greats_jax.training.preparing import Prepared
from greats_jax.training.resolving import REGULAR, needed, total_steps
from greats_jax.training.shelf import Shelf

_MOST = 64  # sets of programs that a shelf keeps


@dataclasses.dataclass
class Programs:
    """Jitted functions, compiled when they are first called, and what was found out about them.

    Attributes:
        step: One update, with selection.
        plain_step: The same with all candidates, to count what selecting costs.
        losses_of: Losses of a batch, for evaluations.
        shares: By shapes of the step's batches, the share of its FLOPs that selecting costs.
        picking: Seconds of the rule alone, once they are known.
    """

    step: Callable[..., Any]
    plain_step: Callable[..., Any]
    losses_of: LossesOf
    shares: dict[tuple[int, ...], float] = dataclasses.field(default_factory=dict)
    picking: float | None = None


def programs_of(config: TrainConfig, run: Prepared, placement: Placement, shelf: Shelf) -> Programs:
    """The programs of a run: those of an earlier one with the same key, if the shelf has them."""

    def make() -> Programs:
        step, plain_step = (
            configured_step(config, run.selecting, run.optimizer, method, placement)
            for method in (config.method, REGULAR)
        )
        dropout = config.lora is not None and config.lora.dropout > 0
        loss_fn = language_model_loss(run.model.graphdef, combine, dropout=dropout)
        return Programs(step, plain_step, row_losses(loss_fn, placement))

    if "reference_losses" in needed(config):
        return make()  # the loss knows the model that it compares with
    return shelf.take("programs", _key(config, run), make, most=_MOST)


def _key(config: TrainConfig, run: Prepared) -> Hashable:
    """Everything of a run that its programs are made from; arrays, of whatever lengths, are their arguments."""
    neutral = dataclasses.replace(
        config,
        data=DataConfig(),
        task=TaskConfig(),
        evaluate_every=None,
        steps=total_steps(config, len(run.data.pool)),
        epochs=None,
        output="",
        seed=0,
        checkpoint=CheckpointConfig(),
        guards=GuardConfig(),
        trackers=(),
    )
    return neutral, run.model.architecture, run.model.graphdef
