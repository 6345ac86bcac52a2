import math

import jax.numpy as jnp
import numpy as np
import pytest

from greats_jax.data import Example
from greats_jax.training.evaluation import EvaluationSet, evaluate_tasks, perplexity

VOCABULARY = 11


def examples(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        length = int(rng.integers(2, 40))
        labels = rng.random(length) < 0.5
        labels[0], labels[-1] = False, True
        made.append(Example(f"e{number}", "s", rng.integers(0, VOCABULARY, length).astype(np.int32), labels))
    return made


def token_loss(token, position):
    """A loss that depends on the token and its place, so that a shift or a padded label would show."""
    return 0.1 * token + 0.01 * position


def losses_of(params, frozen, batch):
    position = jnp.arange(batch.input_ids.shape[1])
    labels = batch.label_mask & batch.attention_mask
    total = jnp.where(labels, token_loss(batch.input_ids, position), 0).sum(axis=1)
    return params * total / labels.sum(axis=1)  # NaN for rows that only pad the batch


@pytest.mark.parametrize("batch", [1, 4, 7, 64])
def test_perplexity_is_exp_of_the_mean_over_examples_of_the_mean_over_label_tokens(batch):
    made = examples(13)
    per_example = [
        np.mean([token_loss(e.input_ids[t], t) for t in range(len(e.input_ids)) if e.label_mask[t]]) for e in made
    ]
    measured = EvaluationSet(made, batch, pad_id=5).measure(losses_of, 1.0, {})
    assert measured.loss == pytest.approx(np.mean(per_example), rel=1e-6)
    assert measured.perplexity == pytest.approx(math.exp(np.mean(per_example)), rel=1e-6)
    assert measured.examples == 13
    assert measured.tokens == sum(int(e.label_mask.sum()) for e in made)


def test_at_most_as_many_lengths_as_buckets_are_compiled():
    lengths = set()

    def watch(params, frozen, batch):
        lengths.add(batch.input_ids.shape)
        return losses_of(params, frozen, batch)

    EvaluationSet(examples(60), 4, pad_id=0, buckets=3).measure(watch, 1.0, {})
    assert 1 <= len(lengths) <= 3


def test_an_empty_set_and_an_overflow_are_numbers_not_errors():
    assert math.isnan(EvaluationSet([], 4, pad_id=0).measure(losses_of, 1.0, {}).perplexity)
    assert perplexity(np.array([1e4]), 1).perplexity == math.inf
    assert math.isnan(perplexity(np.array([1.0, np.nan]), 2).loss)


def test_both_sets_of_a_task_are_reported_by_name():
    sets = {"task": (EvaluationSet(examples(3), 2, 0), EvaluationSet(examples(5, seed=1), 2, 0))}
    measured = evaluate_tasks(sets, losses_of, 2.0, {})
    assert measured["validation_perplexity"] == pytest.approx(math.exp(measured["validation_loss"]))
    assert measured["test_perplexity"] == pytest.approx(math.exp(measured["test_loss"]))
    assert measured["test_loss"] != measured["validation_loss"]
    assert measured["seconds"] >= 0


def test_several_tasks_are_measured_each_and_together():
    parts = [(EvaluationSet(examples(3), 2, 0), EvaluationSet(examples(count, seed=count), 2, 0)) for count in (2, 6)]
    measured = evaluate_tasks({"a": parts[0], "b": parts[1]}, losses_of, 2.0, {})
    alone = [evaluate_tasks({"one": part}, losses_of, 2.0, {}) for part in parts]
    assert measured["a/test_loss"] == alone[0]["test_loss"]
    assert measured["b/validation_perplexity"] == alone[1]["validation_perplexity"]
    mean = (2 * alone[0]["test_loss"] + 6 * alone[1]["test_loss"]) / 8
    assert measured["test_loss"] == pytest.approx(mean)
    assert measured["test_perplexity"] == pytest.approx(math.exp(mean))
