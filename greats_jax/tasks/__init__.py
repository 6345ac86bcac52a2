"""Target tasks: the validation examples that steer the selection, and the test examples that measure it."""

from greats_jax.tasks.config import TaskConfig
from greats_jax.tasks.target import TargetTask, load_task

__all__ = ["TargetTask", "TaskConfig", "load_task"]
