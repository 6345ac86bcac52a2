"""Perplexity of a model on a target task.

The loss of an example is the mean over its label tokens (nats per token); the perplexity of a set is the exponential of
the mean over its examples. Padding rows and positions enter neither mean.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from greats_jax.data import Example, LanguageBatch, bucket_lengths, collate
from greats_jax.training.losses import language_rows, make_evaluator

LossesOf = Callable[[Any, Any, LanguageBatch], jax.Array]
"""(params, frozen, batch) -> f32[b], the loss of every row; dispatched, not waited for."""


def row_losses(loss_fn: Callable[..., jax.Array]) -> LossesOf:
    """Losses of every row of a batch, forward only and without dropout, compiled once per shape.

    Args:
        loss_fn: As `losses.language_model_loss` makes it.
    """
    losses_of = make_evaluator(loss_fn)
    return lambda params, frozen, batch: losses_of(params, frozen, language_rows(batch))


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
        """Perplexity under the given parameters; waits for the device once, after the last batch is dispatched."""
        pending = [(losses_of(params, frozen, batch), rows) for batch, rows in self._batches]
        losses = [np.asarray(values)[:rows] for values, rows in pending]
        return perplexity(np.concatenate(losses) if losses else np.empty(0), self._tokens)


def perplexity(losses: np.ndarray, tokens: int) -> Perplexity:
    """Perplexity of a set from the loss of each of its examples, f[n]; NaN for an empty set."""
    loss = float(np.mean(losses, dtype=np.float64)) if len(losses) else math.nan
    try:
        value = math.exp(loss)
    except OverflowError:
        value = math.inf
    return Perplexity(loss, value, len(losses), tokens)


def evaluate_task(
    validation: EvaluationSet, test: EvaluationSet, losses_of: LossesOf, params: Any, frozen: Any
) -> dict[str, float]:
    """Both sets of a task as the scalars of an evaluation record, with the seconds it took."""
    began = time.perf_counter()
    on_validation = validation.measure(losses_of, params, frozen)
    on_test = test.measure(losses_of, params, frozen)
    return {
        "validation_loss": on_validation.loss,
        "validation_perplexity": on_validation.perplexity,
        "test_loss": on_test.loss,
        "test_perplexity": on_test.perplexity,
        "seconds": time.perf_counter() - began,
    }
