"""Training with online selection: the compiled step, its state, and the trainer built on them.

The step needs only JAX and optax. `Trainer`, `TrainConfig`, `load_config` and `RunResult` are imported on first use,
because they bring the readers of data and models with them, which takes seconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

from greats_jax.training.losses import (
    LanguageExample,
    has_labels,
    label_count,
    language_model_loss,
    language_rows,
    make_evaluator,
    masked_mean_nll,
    split_language_model_loss,
)
from greats_jax.training.placement import Placement
from greats_jax.training.scoring import Projection, Scoring
from greats_jax.training.split_loss import SplitLoss
from greats_jax.training.state import TrainState
from greats_jax.training.step import StepMetrics, make_selective_step
from greats_jax.training.targets import Targets

if TYPE_CHECKING:
    from greats_jax.training.config import TrainConfig
    from greats_jax.training.config_loading import load_config
    from greats_jax.training.result import RunResult
    from greats_jax.training.trainer import Trainer

_LATER = {"TrainConfig": "config", "load_config": "config_loading", "RunResult": "result", "Trainer": "trainer"}

__all__ = [
    "LanguageExample",
    "Placement",
    "Projection",
    "RunResult",
    "Scoring",
    "SplitLoss",
    "StepMetrics",
    "Targets",
    "TrainConfig",
    "TrainState",
    "Trainer",
    "has_labels",
    "label_count",
    "language_model_loss",
    "language_rows",
    "load_config",
    "make_evaluator",
    "make_selective_step",
    "masked_mean_nll",
    "split_language_model_loss",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"greats_jax.training.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
