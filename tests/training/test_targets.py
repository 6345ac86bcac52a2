"""Several target tasks in one run, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows_and_gradients import (
    CANDIDATES,
    FROZEN,
    KEEP,
    OPTIMIZER,
    PARAMS,
    RATE,
    flat,
    gradients,
    loss_fn,
    new_state,
    rows,
    spoil_gradients,
    spoil_losses,
)

from greats_jax.errors import ArgumentError
from greats_jax.training import Projection, Scoring, Targets, make_selective_step

TASKS = 3
VALIDATION = rows(7, 6)
TASK_OF = np.asarray([0, 0, 0, 1, 2, 2])
VALIDATION["task"] = jnp.asarray(TASK_OF)
WHOLE = set(range(6))
SPOILT = {
    "sound": (VALIDATION, WHOLE),
    "a row without a loss": (spoil_losses(VALIDATION, 0), WHOLE - {0}),
    "a task without a usable row": (spoil_gradients(spoil_losses(VALIDATION, 4), 5), WHOLE - {4, 5}),
}


def by_hand(combine: str, usable: set[int]) -> np.ndarray:
    """Alignments f32[n] with the tasks, combined."""
    ours = flat(gradients(PARAMS, CANDIDATES)[1])
    losses, grads = gradients(PARAMS, VALIDATION)
    theirs = flat(grads)
    groups = [[i for i in sorted(usable) if TASK_OF[i] == task] for task in range(TASKS)]
    groups = [group for group in groups if group]
    each = np.stack([ours @ theirs[group].mean(0) for group in groups])
    if combine == "mean":
        return each.mean(0)
    if combine == "max":
        return each.max(0)
    return each[np.argmax([np.asarray(losses)[group].mean() for group in groups])]


def step_with(combine: str, rule: str = "greats", **options):
    targets = Targets(lambda row: row["task"], TASKS, combine)  # type: ignore[arg-type]
    return make_selective_step(loss_fn, OPTIMIZER, rule, KEEP, learning_rate=RATE, targets=targets, **options)


WAYS = {
    "one pass": {},
    "two passes": {"scoring": Scoring("two")},
    "a cached direction": {"validation": "cached"},
    "micro-batches": {"scoring": Scoring("two", 2)},
    "projected Gram": {"scoring": Scoring(projection=Projection(64))},
}


@pytest.mark.parametrize(
    ("combine", "way", "rule"),
    [
        ("mean", "one pass", "greats"), ("mean", "micro-batches", "greats"),
        ("max", "one pass", "greats"), ("max", "two passes", "greats"), ("max", "projected Gram", "greats"),
        ("worst", "one pass", "greats"), ("worst", "two passes", "cosine"),
        ("worst", "a cached direction", "greats"), ("mean", "one pass", "layer_wise"),
    ],
)  # fmt: skip
def test_candidates_are_ranked_by_what_the_tasks_say_together(combine, way, rule):
    step = step_with(combine, rule, **WAYS[way])
    for what, (validation, usable) in SPOILT.items():
        _, metrics = step(new_state(), FROZEN, CANDIDATES, validation)
        expected = by_hand(combine, usable)
        if rule == "cosine":
            expected = expected / np.linalg.norm(flat(gradients(PARAMS, CANDIDATES)[1]), axis=1)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(metrics.scores, expected, rtol=1e-3, atol=1e-4 * scale, err_msg=what)
        assert (int(metrics.n_validation), int(metrics.n_rejected)) == (len(usable), 0)
        assert not metrics.skipped


@pytest.mark.parametrize("passes", ["one", "two"])
def test_projected_alignments_are_estimates_of_the_same(passes):
    scoring = Scoring(passes, projection=Projection(1024, "projected"))
    _, metrics = step_with("max", scoring=scoring)(new_state(), FROZEN, CANDIDATES, VALIDATION)
    assert np.corrcoef(metrics.scores, by_hand("max", WHOLE))[0, 1] > 0.9


@pytest.mark.parametrize("combine", ["mean", "max", "worst"])
def test_without_any_usable_row_the_step_is_skipped(combine):
    state, metrics = step_with(combine)(new_state(), FROZEN, CANDIDATES, spoil_losses(VALIDATION, *range(6)))
    assert metrics.skipped
    assert int(metrics.n_rejected) == 0, "the candidates are not to blame"
    jax.tree.map(np.testing.assert_array_equal, state.params, PARAMS)


def test_the_three_ways_to_combine_differ_here():
    found = [by_hand(combine, WHOLE) for combine in ("mean", "max", "worst")]
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[0], found[2])
    assert not np.allclose(found[1], found[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": "cached"}, "keep only one direction"),
        ({"scoring": Scoring("two", 2)}, "keep only one direction"),
        ({"rule": "greats_adam"}, "'greats_adam' takes preconditioned_alignment with one direction"),
        ({"rule": "layer_wise"}, "'layer_wise' takes per_leaf_alignment with one direction"),
    ],
)
def test_the_best_of_all_tasks_needs_every_validation_row(options, message):
    with pytest.raises(ArgumentError, match=message):
        step_with("max", **options)


def test_targets_that_cannot_be_are_named():
    with pytest.raises(ArgumentError, match="count=0"):
        Targets(lambda row: row, 0)
    with pytest.raises(ArgumentError, match="choose 'mean', 'max' or 'worst'"):
        Targets(lambda row: row, 2, "median")  # type: ignore[arg-type]
