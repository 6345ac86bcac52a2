"""The step that a configuration describes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

from greats_jax.training.config import TrainConfig
from greats_jax.training.losses import label_count
from greats_jax.training.placement import Placement
from greats_jax.training.resolving import REGULAR, groups_of, kept
from greats_jax.training.selecting import Selecting
from greats_jax.training.step import TARGET_ONLY, make_selective_step


def configured_step(
    config: TrainConfig,
    selecting: Selecting,
    optimizer: optax.GradientTransformation,
    method: str,
    placement: Placement | None = None,
) -> Callable[..., Any]:
    """The step of a configuration, with its rule or another one."""
    options = selecting.options
    return make_selective_step(
        selecting.loss_fn,
        optimizer,
        # A batch of validation examples takes the candidates' place: see make_inputs.
        objective=REGULAR if method == TARGET_ONLY else method,
        keep=1.0 if method == TARGET_ONLY else kept(config),
        validation=options.validation,
        refresh_every=options.refresh_every,
        learning_rate=options.learning_rate,
        is_valid=options.is_valid,
        has_aux=options.has_aux,
        row_weight=label_count if config.update_weighting == "tokens" else None,
        scoring=options.scoring,
        row_signals=options.row_signals,
        targets=options.targets,
        preconditioner=options.preconditioner,
        placement=placement,
        groups=1 if method == REGULAR or placement is None else groups_of(config, placement.row_parts),
    )
