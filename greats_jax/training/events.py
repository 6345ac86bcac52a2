"""What a trainer tells the outside world while it runs: plain values on the host, never device arrays.

A tracker is anything with `record(event)` and `close()`; the run folder, TensorBoard, Weights & Biases and the progress
bar of the command line are all trackers, and a notebook can pass its own to `Trainer`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from greats_jax.training.config import TrainConfig


@dataclass(frozen=True)
class Started:
    """Everything is loaded and the first step is about to run.

    Attributes:
        config: The resolved configuration.
        folder: The run folder.
        steps: Optimizer updates of the whole run.
        done: Updates made before, by the run that this one goes on with; 0 for a run that begins.
        trainable: Number of trainable parameters.
        total: Number of all parameters.
        pool: Examples in the pool.
        sources: Names of the pool's sources.
        dropped: Records left out of the pool, by source and reason.
        validation: Validation examples of the task.
        test: Test examples of the task.
    """

    config: TrainConfig
    folder: Path
    steps: int
    done: int
    trainable: int
    total: int
    pool: int
    sources: tuple[str, ...]
    dropped: dict[str, dict[str, int]]
    validation: int
    test: int


@dataclass(frozen=True)
class Stepped:
    """One optimizer update is done (several micro-batches when gradients are accumulated).

    Attributes:
        step: Number of the update, from 1.
        metrics: Scalars by name; the names are those of metrics.jsonl.
    """

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Selected:
    """The choice made in one batch of candidates.

    Attributes:
        step: Number of the update, from 1.
        micro_batch: Number of the batch within the update, from 0.
        candidates: Id of each candidate.
        sources: Source of each candidate.
        scores: Score the rule gave each candidate; None where it has none.
        losses: Loss of each candidate, nats per label token.
        chosen: Ids of the kept candidates, in the order of choice.
        weights: Weight of each kept candidate in the update, relative.
    """

    step: int
    micro_batch: int
    candidates: tuple[str, ...]
    sources: tuple[str, ...]
    scores: tuple[float | None, ...]
    losses: tuple[float | None, ...]
    chosen: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Evaluated:
    """Perplexity and scores on the task.

    Attributes:
        step: Updates made before the evaluation; 0 is the model as loaded.
        metrics: Scalars by name: validation_loss, validation_perplexity, test_loss, test_perplexity, seconds; where
            they were measured also the task's own scores, such as test_accuracy.
    """

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Noticed:
    """Something a user should know that stops nothing, in one line."""

    text: str


Event = Started | Stepped | Selected | Evaluated | Noticed


class Tracker(Protocol):
    """Receives the events of one run, in order."""

    def record(self, event: Event) -> None:
        """Take one event in; it must return fast, since the trainer waits for it."""
        ...

    def close(self) -> None:
        """Write what is pending; called once, also when the run fails."""
        ...
