"""Target tasks: the validation examples that steer the selection, and what measures whether it helped."""

from greats_jax.tasks.config import TaskConfig
from greats_jax.tasks.measuring import Answered, Measured, measure
from greats_jax.tasks.metrics import METRICS
from greats_jax.tasks.questions import Benchmark, Question, cut_at
from greats_jax.tasks.target import TargetTask, load_task

__all__ = [
    "METRICS",
    "Answered",
    "Benchmark",
    "Measured",
    "Question",
    "TargetTask",
    "TaskConfig",
    "cut_at",
    "load_task",
    "measure",
]
