"""Perplexity of a model on a target task, and the task's own scores.

The loss of an example is the mean over its label tokens (nats per token); the perplexity of a set is the exponential of
the mean over its examples. Padding rows and positions enter neither mean.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from greats_jax.data import Example, LanguageBatch, bucket_lengths, collate
from greats_jax.models import Decoder
from greats_jax.tasks.measuring import Measured, measure
from greats_jax.training.config import TrainConfig
from greats_jax.training.losses import language_rows, make_evaluator
from greats_jax.training.placement import Placement
from greats_jax.training.setup import TaskData

_AHEAD = 2  # batches dispatched and not yet read: enough to hide the host, few enough to stop soon

LossesOf = Callable[[Any, Any, LanguageBatch], jax.Array]
"""(params, frozen, batch) -> f32[b], the loss of every row; dispatched, not waited for."""


def row_losses(loss_fn: Callable[..., jax.Array], placement: Placement | None = None) -> LossesOf:
    """Losses of every row of a batch, forward only and without dropout, compiled once per shape.

    Args:
        loss_fn: As `losses.language_model_loss` makes it.
        placement: Where arrays live on a mesh; None for one device.
    """
    losses_of = make_evaluator(loss_fn, placement)

    def of_batch(params: Any, frozen: Any, batch: LanguageBatch) -> jax.Array:
        rows = language_rows(batch)
        return losses_of(params, frozen, rows if placement is None else placement.put_rows(rows))

    return of_batch


class Perplexity(NamedTuple):
    """How well a model predicts a set of examples.

    Attributes:
        loss: Mean loss over the examples, nats per label token.
        perplexity: exp(loss); infinite where that overflows.
        examples: Examples measured.
        tokens: Label tokens in them.
    """

    loss: float
    perplexity: float
    examples: int
    tokens: int


class EvaluationSet:
    """Examples in padded batches, made once and measured many times.

    Args:
        examples: The examples; each has a label.
        batch: Rows per batch.
        pad_id: Token to pad with.
        buckets: Most lengths to pad to; each is one compilation.
    """

    def __init__(self, examples: Sequence[Example], batch: int, pad_id: int, buckets: int = 4):
        # Neighbours in length share a batch: evaluation has no randomness to keep, and padding is only waste.
        ordered = sorted(examples, key=lambda example: len(example.input_ids))
        groups = [ordered[start : start + batch] for start in range(0, len(ordered), batch)]
        longest = np.array([len(group[-1].input_ids) for group in groups], np.int64)
        edges = bucket_lengths(longest, buckets) if groups else ()
        lengths = [next(edge for edge in edges if edge >= length) for length in longest]
        self._batches = [
            (collate(group, length, pad_id, rows=batch), len(group))
            for group, length in zip(groups, lengths, strict=True)
        ]
        self._tokens = sum(int(example.label_mask[1:].sum()) for example in ordered)

    def measure(self, losses_of: LossesOf, params: Any, frozen: Any) -> Perplexity:
        """Perplexity under the given parameters; the host is never more than a few batches ahead of the device."""
        losses, pending = [], deque()
        for batch, rows in self._batches:
            pending.append((losses_of(params, frozen, batch), rows))
            if len(pending) > _AHEAD:
                losses.append(_read(*pending.popleft()))
        losses += [_read(*last) for last in pending]
        return perplexity(np.concatenate(losses) if losses else np.empty(0), self._tokens)


def _read(losses: jax.Array, rows: int) -> np.ndarray:
    """The losses of the first rows, once the device has them."""
    return np.asarray(losses)[:rows]


def perplexity(losses: np.ndarray, tokens: int) -> Perplexity:
    """Perplexity of a set from the loss of each of its examples, f[n]; NaN for an empty set."""
    loss = float(np.mean(losses, dtype=np.float64)) if len(losses) else math.nan
    try:
        value = math.exp(loss)
    except OverflowError:
        value = math.inf
    return Perplexity(loss, value, len(losses), tokens)


def evaluation_sets(data: TaskData, batch: int) -> dict[str, tuple[EvaluationSet, EvaluationSet]]:
    """Validation and test set of each target task."""
    return {
        name: (
            EvaluationSet(data.of_task(number)[0], batch, data.pool.pad_id),
            EvaluationSet(data.of_task(number)[1], batch, data.pool.pad_id),
        )
        for number, name in enumerate(data.tasks)
    }


def evaluate_tasks(
    sets: Mapping[str, tuple[EvaluationSet, EvaluationSet]], losses_of: LossesOf, params: Any, frozen: Any
) -> dict[str, float]:
    """Both sets of the target tasks as the scalars of an evaluation record, with the seconds it took.

    Args:
        sets: Validation and test set of each task, by its name.
        losses_of: As `row_losses` makes it.
        params: Trainable parameters.
        frozen: The rest.

    Returns:
        `validation_loss`, `validation_perplexity`, `test_loss` and `test_perplexity` over the examples of all tasks,
        and `seconds`; for several tasks also each of these for each task, as `<task>/test_loss`.
    """
    began = time.perf_counter()
    measured = {
        name: dict(zip(("validation", "test"), (part.measure(losses_of, params, frozen) for part in pair), strict=True))
        for name, pair in sets.items()
    }
    scalars: dict[str, float] = {}
    for part in ("validation", "test"):
        every = [task[part] for task in measured.values() if task[part].examples]
        examples = sum(one.examples for one in every)
        loss = sum(one.loss * one.examples for one in every) / examples if examples else math.nan
        whole = every[0] if len(every) == 1 else perplexity(np.array([loss]) if examples else np.empty(0), 0)
        scalars |= {f"{part}_loss": whole.loss, f"{part}_perplexity": whole.perplexity}
    if len(sets) > 1:
        for name, task in measured.items():
            for part, one in task.items():
                scalars |= {f"{name}/{part}_loss": one.loss, f"{name}/{part}_perplexity": one.perplexity}
    return {**scalars, "seconds": time.perf_counter() - began}


def measure_benchmarks(
    data: TaskData,
    model: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainConfig,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Measured]:
    """What a model scores on the questions of each target task that has any, by its name.

    Prompts are as long as examples may be (`data.max_length`), and answered `evaluate_batch` at once. The last two
    arguments are those of `measure`.

    Raises:
        TaskError: A question cannot be asked.
        MeasuringStopped: `should_stop` said yes.
    """
    return {
        name: measure(
            benchmark,
            model,
            tokenizer,
            template=config.data.template,
            max_length=config.data.max_length,
            batch=config.evaluate_batch,
            should_stop=should_stop,
            progress=progress,
        )
        for name, benchmark in zip(data.tasks, data.benchmarks, strict=False)
        if benchmark is not None
    }


def scores_of(measured: Mapping[str, Measured], tasks: Sequence[str]) -> dict[str, float]:
    """Scores as the scalars of an evaluation record: `test_<score>`, for several tasks `<task>/test_<score>`."""
    return {
        f"{task}/test_{name}" if len(tasks) > 1 else f"test_{name}": value
        for task, one in measured.items()
        for name, value in one.scores.items()
    }


def too_long(measured: Mapping[str, Measured], max_length: int) -> list[str]:
    """What to say of tasks whose prompts did not fit, one line each."""
    lines = []
    for task, one in measured.items():
        lost = [f"they lost {one.dropped_shots:,} worked examples"] if one.dropped_shots else []
        lost += [f"{one.shortened:,} lost their beginning"] if one.shortened else []
        if lost:
            prompts = f"the prompts of {one.questions:,} questions"
            lines.append(f"{task}: {prompts} had to fit in {max_length} tokens (data.max_length): {' and '.join(lost)}")
    return lines
