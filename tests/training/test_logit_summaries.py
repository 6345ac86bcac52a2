"""What UDS sees of logits, against NumPy."""

from typing import Any

import jax
import numpy as np
import pytest

from greats_jax.training import logit_summaries

T, V = 6, 40
LOGITS = np.random.default_rng(0).normal(size=(2, T, V)).astype(np.float32)
MASK = np.asarray([False, True, True, False, True, True])


def summarise(logits: Any, mask: Any) -> dict[str, jax.Array]:
    return logit_summaries.summarise(logits, mask)


@pytest.mark.parametrize("mask", [MASK, np.ones(T, bool), np.arange(T) == 2])
def test_the_nuclear_norm_is_that_of_the_label_rows_per_row(mask):
    found = summarise(LOGITS[0], mask)["nuclear"]
    expected = np.linalg.svd(LOGITS[0][mask], compute_uv=False).sum() / mask.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_other_positions_do_not_count():
    changed = np.where(MASK[:, None], LOGITS[0], 1e6)
    jax.tree.map(np.testing.assert_array_equal, summarise(LOGITS[0], MASK), summarise(changed, MASK))
    changed = np.where(MASK[:, None], LOGITS[0], np.nan)
    assert np.isfinite(summarise(changed, MASK)["projection"]).all()


def test_without_labels_there_is_nothing():
    found = summarise(LOGITS[0], np.zeros(T, bool))
    assert float(found["nuclear"]) == 0
    assert not np.any(found["projection"])


def test_distances_of_projections_are_those_of_the_logits_per_row():
    """One fixed random map: over many pairs its mean error is none, and each error is small."""
    rng = np.random.default_rng(1)
    pairs = rng.normal(size=(2, 60, T, V)).astype(np.float32)
    mask = np.broadcast_to(MASK, (60, T))
    ours, theirs = (jax.vmap(summarise)(logits, mask)["projection"] for logits in pairs)
    assert ours.shape == (60, 1024)
    found = ((np.asarray(ours) - np.asarray(theirs)) ** 2).sum(1)
    exact = ((pairs[0] - pairs[1])[:, MASK] ** 2).sum((1, 2)) / MASK.sum()
    np.testing.assert_allclose(found.mean() / exact.mean(), 1, atol=0.15)
    assert np.abs(found / exact - 1).mean() < 0.3
