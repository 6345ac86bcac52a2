"""Trackers that send a run's scalars to TensorBoard or Weights & Biases; their packages are extras."""

import contextlib
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greats_jax.errors import ConfigError, RunError
from greats_jax.models.sources import one_line
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import plain
from greats_jax.training.events import Evaluated, Event, Started, Stepped, Tracker

_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def check_trackers(config: TrainConfig) -> None:
    """Make sure that the packages of the trackers a configuration asks for are installed.

    Raises:
        ConfigError: One is not.
    """
    for name in config.trackers:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            raise ConfigError(
                f"trackers: {name} needs the package {_PACKAGES[name]}; run pip install {_PACKAGES[name]}"
            )


def build_trackers(config: TrainConfig, folder: Path, notice: Callable[[str], None]) -> list[Tracker]:
    """The trackers a configuration asks for, started; from then on one that fails is dropped and the run goes on.

    Args:
        config: The resolved configuration.
        folder: The run folder.
        notice: Told in one line of a tracker that was dropped.

    Raises:
        RunError: One cannot start: that is the user's to mend, and nothing is lost yet.
    """
    makers = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker}
    names = dict.fromkeys(config.trackers)
    return [Expendable(makers[name](folder, config), name, notice) for name in names]


class Expendable:
    """A tracker that a run can do without: the first failure is reported, and then it is told nothing more.

    Args:
        tracker: The tracker.
        name: What the configuration calls it.
        notice: Told of the failure.
    """

    def __init__(self, tracker: Tracker, name: str, notice: Callable[[str], None]):
        self._tracker, self._name, self._notice = tracker, name, notice
        self._works = True

    def record(self, event: Event) -> None:
        """Pass the event on."""
        self._attempt(lambda: self._tracker.record(event))

    def close(self) -> None:
        """Close the tracker."""
        self._attempt(self._tracker.close)

    def _attempt(self, action: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            action()
        except Exception as error:  # a server that is down, a full disk: whatever its package raises
            self._works = False
            with contextlib.suppress(Exception):
                self._tracker.close()
            self._notice(
                f"trackers: {self._name} fails ({one_line(error)}) and gets nothing more; training goes on, and the "
                "run folder has all the numbers"
            )


class TensorBoardTracker:
    """Scalars as TensorBoard event files in `tensorboard/` of the run folder."""

    def __init__(self, folder: Path, config: TrainConfig):
        self._folder = folder / "tensorboard"
        self._open()

    def _open(self, purge_step: int | None = None) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)

    def record(self, event: Event) -> None:
        """Write the scalars of an update or an evaluation; of a run gone on with, in the place of those made again."""
        if isinstance(event, Started) and event.done:
            self._writer.close()
            self._open(purge_step=event.done + 1)
        for name, value in _scalars(event).items():
            self._writer.add_scalar(name, value, getattr(event, "step", 0))

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbTracker:
    """Scalars and configuration to a Weights & Biases project; credentials and offline mode are wandb's own affair."""

    def __init__(self, folder: Path, config: TrainConfig):
        import wandb

        try:
            self._run: Any = wandb.init(
                project=config.wandb_project, name=folder.name, dir=str(folder), config=plain(config)
            )
        except Exception as error:  # no login, no network: wandb's own types, none of them ours to tell apart
            raise RunError(
                f"trackers: wandb cannot start ({one_line(error)}); try wandb login, or WANDB_MODE=offline"
            ) from error

    def record(self, event: Event) -> None:
        """Log the scalars of an update or an evaluation under its step."""
        if scalars := _scalars(event):
            # The step travels as a value: wandb's own step only moves forward, and evaluations share their update's.
            self._run.log(scalars | {"step": getattr(event, "step", 0)})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _scalars(event: Event) -> dict[str, float]:
    """Scalars by the name charts group them by: train/..., task/...."""
    match event:
        case Stepped(_, metrics):
            group = "train"
        case Evaluated(_, metrics):
            group = "task"
        case _:
            return {}
    # What a rule does not compute is NaN, and a chart of NaN says nothing.
    return {f"{group}/{name}": float(value) for name, value in metrics.items() if math.isfinite(value)}
