"""Reads what steps report, one step behind the device, and turns it into events on the host.

The step that has just been dispatched is never waited for: its predecessor's numbers are read while it runs. Before
something that blocks anyway (a compilation, an evaluation) the last step is read as well, so that no update is charged
with the time of what is not an update.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from greats_jax.data import Candidates
from greats_jax.training.events import Event, Selected, Stepped
from greats_jax.training.step import StepMetrics


class Work(NamedTuple):
    """What is known of the time of one step besides how long it took.

    Attributes:
        selecting: Share of the step's FLOPs that went into selecting; NaN for a step that had to be compiled first.
        picking: Seconds that the rule takes once it has its signals.
        waiting: Seconds that the host waited for the batch.
    """

    selecting: float
    picking: float = 0.0
    waiting: float = 0.0


class _Pending(NamedTuple):
    candidates: Candidates
    metrics: StepMetrics
    work: Work


class Totals(NamedTuple):
    """What is counted over a whole run.

    Attributes:
        updates: Optimizer updates made.
        candidate_tokens: Tokens of all candidates.
        trained_tokens: Tokens of those that were learned from.
    """

    updates: int = 0
    candidate_tokens: int = 0
    trained_tokens: int = 0


_NONE = Totals()


class Recorder:
    """Gathers the micro-batches of each update and emits their events in order.

    Args:
        emit: Receives the events.
        sources: Names of the pool's sources.
        accumulate: Micro-batches per update.
        totals: What was counted before.
    """

    def __init__(
        self, emit: Callable[[Event], None], sources: tuple[str, ...], accumulate: int, totals: Totals = _NONE
    ):
        self._emit = emit
        self._sources = sources
        self._accumulate = accumulate
        self._pending: _Pending | None = None
        self._read: list[_Pending] = []
        self._totals = totals
        self._clock = time.perf_counter()

    def restart_clock(self) -> None:
        """The next update starts now."""
        self._clock = time.perf_counter()

    def push(self, candidates: Candidates, metrics: StepMetrics, work: Work) -> None:
        """Take in the step just dispatched, and read the one before it.

        Args:
            candidates: What the step chose from.
            metrics: What it reports, still on the device.
            work: What its time went into.
        """
        previous, self._pending = self._pending, _Pending(candidates, metrics, work)
        if previous is not None:
            self._take(previous)

    def flush(self) -> Totals:
        """Wait for the last step dispatched, read it, and return what has been counted so far."""
        previous, self._pending = self._pending, None
        if previous is not None:
            self._take(previous)
        return self._totals

    def _take(self, pending: _Pending) -> None:
        metrics = _read(pending.metrics)
        self._read.append(pending._replace(metrics=metrics))
        self._emit(self._selected(pending.candidates, metrics))
        if len(self._read) == self._accumulate:
            self._emit(self._stepped())
            self._read.clear()

    def _selected(self, candidates: Candidates, metrics: StepMetrics) -> Selected:
        chosen, weights = _choice(metrics)
        return Selected(
            step=self._totals.updates + 1,
            micro_batch=len(self._read) - 1,
            candidates=candidates.ids,
            sources=tuple(self._sources[index] for index in candidates.sources),
            scores=_numbers(metrics.scores),
            losses=_numbers(metrics.candidate_losses),
            chosen=tuple(candidates.ids[index] for index in chosen),
            weights=tuple(float(weight) for weight in weights),
        )

    def _stepped(self) -> Stepped:
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        tokens = trained = examples = size = 0
        for candidates, metrics, _ in self._read:
            lengths = candidates.batch.attention_mask.sum(axis=1)
            tokens += int(lengths.sum())
            examples += len(lengths)
            size += candidates.batch.attention_mask.size
            trained += int(lengths[_choice(metrics)[0]].sum())
        before = self._totals
        self._totals = Totals(before.updates + 1, before.candidate_tokens + tokens, before.trained_tokens + trained)
        every = [metrics for _, metrics, _ in self._read]
        # The batches of an update are of similar length: each counts the same.
        selecting = seconds * sum(work.selecting for _, _, work in self._read) / len(self._read)
        picking = min(selecting, sum(work.picking for _, _, work in self._read))
        return Stepped(
            self._totals.updates,
            {
                "loss": _mean([metrics.loss for metrics in every]),
                "candidate_loss": _mean([metrics.candidate_losses for metrics in every]),
                "selection_validation_loss": _mean([metrics.validation_loss for metrics in every]),
                "learning_rate": float(every[-1].learning_rate),
                "grad_norm": _mean([metrics.grad_norm for metrics in every]),
                "seconds": seconds,
                "seconds_waiting": sum(work.waiting for _, _, work in self._read),
                "seconds_selecting": selecting,
                "seconds_picking": math.nan if math.isnan(selecting) else picking,
                "tokens_per_second": tokens / seconds,
                "examples_per_second": examples / seconds,
                "padding_share": 1 - tokens / size,
                "candidate_tokens": self._totals.candidate_tokens,
                "trained_tokens": self._totals.trained_tokens,
                "rejected_candidates": sum(int(metrics.n_rejected) for metrics in every),
                "rejected_validation": sum(int(metrics.n_validation_rejected) for metrics in every),
                "skipped": sum(bool(metrics.skipped) for metrics in every),
                "compiled": math.isnan(selecting),
            },
        )


def _choice(metrics: StepMetrics) -> tuple[np.ndarray, np.ndarray]:
    """Candidates that were learned from, in the order of picking, and their weights.

    Of a rule that chooses for every parameter: all that any parameter learned from, with their shares of the update.
    """
    if isinstance(metrics.selected, np.ndarray):
        taken = metrics.weights > 0  # a slot that nothing was left for has weight 0
        return metrics.selected[taken], metrics.weights[taken]
    chosen = np.flatnonzero(metrics.shares > 0)
    return chosen, np.asarray(metrics.shares)[chosen]


def _read(metrics: StepMetrics) -> StepMetrics:
    """Copies what a step reports to the host, waiting for the step."""
    return jax.device_get(metrics)


def _mean(values: list[Any]) -> float:
    """Mean of the finite numbers among `values`, NaN if there is none."""
    flat = np.concatenate([np.ravel(np.asarray(value, np.float64)) for value in values])
    finite = flat[np.isfinite(flat)]
    return float(finite.mean()) if finite.size else math.nan


def _numbers(values: Any) -> tuple[float | None, ...]:
    return tuple(float(value) if math.isfinite(value) else None for value in values)
