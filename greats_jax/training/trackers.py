"""Trackers that send a run's scalars to TensorBoard or Weights & Biases; their packages are extras."""

from pathlib import Path
from typing import Any

from greats_jax.errors import ConfigError
from greats_jax.training.config import TrainConfig
from greats_jax.training.events import Evaluated, Event, Stepped, Tracker


def build_trackers(config: TrainConfig, folder: Path) -> list[Tracker]:
    """The trackers a configuration asks for.

    Raises:
        ConfigError: The package of one is not installed.
    """
    makers = {"tensorboard": TensorBoardTracker, "wandb": WandbTracker}
    return [makers[name](folder, config) for name in dict.fromkeys(config.trackers)]


class TensorBoardTracker:
    """Scalars as TensorBoard event files in `tensorboard/` of the run folder."""

    def __init__(self, folder: Path, config: TrainConfig):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise _missing("tensorboard", "tensorboardX") from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def record(self, event: Event) -> None:
        """Write the scalars of an update or an evaluation."""
        for name, value in _scalars(event).items():
            self._writer.add_scalar(name, value, getattr(event, "step", 0))

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WandbTracker:
    """Scalars and configuration to a Weights & Biases project; credentials and offline mode are wandb's own affair."""

    def __init__(self, folder: Path, config: TrainConfig):
        try:
            import wandb
        except ImportError:
            raise _missing("wandb", "wandb") from None
        from dataclasses import asdict

        self._run: Any = wandb.init(
            project=config.wandb_project, name=folder.name, dir=str(folder), config=asdict(config)
        )

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
            return {f"train/{name}": value for name, value in metrics.items()}
        case Evaluated(_, metrics):
            return {f"task/{name}": value for name, value in metrics.items()}
        case _:
            return {}


def _missing(extra: str, package: str) -> ConfigError:
    return ConfigError(
        f'trackers: {extra} needs the package {package}; install it with pip install "greats-jax[{extra}]"'
    )
