import numpy as np
import pytest

from greats_jax.experiments.report.picks import (
    Candidacies,
    by_length,
    by_loss,
    by_source,
    candidacies,
    chooses,
    course,
    length_edges,
    mean_course,
    mean_shares,
    rank_bins,
    shares,
)


def batch(step: int, losses, chosen, weights=None, ids=None, sources=None) -> dict:
    ids = ids or [f"{'ab'[i % 2]}{step}-{i}" for i in range(len(losses))]
    return {
        "step": step, "micro_batch": 0, "candidates": ids, "sources": sources or [name[0] for name in ids],
        "scores": [None] * len(ids), "losses": losses, "chosen": [ids[i] for i in chosen],
        "weights": weights or [1.0] * len(chosen),
    }  # fmt: skip


def test_candidates_become_rows_and_a_weight_of_0_is_no_choice():
    found = candidacies([batch(1, [3.0, None, 1.0, 2.0], [2, 0], [1.0, 0.0]), batch(2, [1.0, 2.0, 3.0, 4.0], [3, 1])])
    assert len(found) == 8
    assert found.step.tolist() == [1] * 4 + [2] * 4
    assert found.chosen.tolist() == [False, False, True, False, False, True, False, True]
    assert np.isnan(found.loss).tolist() == [False, True, False, False] + [False] * 4
    assert np.isnan(found.score).all()
    assert chooses(found)
    assert not chooses(candidacies([batch(1, [1.0, 2.0], [1, 0])]))
    assert not chooses(candidacies([]))


def test_an_example_twice_in_a_batch_counts_as_often_as_it_was_chosen():
    twice = batch(1, [1.0, 1.0, 2.0], [0], ids=["a", "a", "b"])
    assert candidacies([twice]).chosen.tolist() == [True, False, False]
    assert candidacies([twice | {"chosen": ["a", "a"], "weights": [1.0, 1.0]}]).chosen.tolist() == [True, True, False]


def test_shares_by_source():
    found = by_source(candidacies([batch(1, [None] * 4, [0, 1]), batch(2, [None] * 4, [0, 2])]))
    assert found.names == ("a", "b")
    assert found.candidates.tolist() == [0.5, 0.5]
    assert found.chosen.tolist() == [0.75, 0.25]
    assert found.ratio.tolist() == [1.5, 0.5]


def test_a_group_without_candidates_has_no_ratio():
    found = shares(np.array([0, 0, -1]), np.array([True, False, True]), ["a", "b"])
    assert found.chosen.tolist() == [1.0, 0.0]
    assert found.ratio[0] == 1
    assert np.isnan(found.ratio[1])


def test_the_mean_over_runs_knows_the_groups_of_all():
    one, other = shares(np.array([0]), np.array([True]), ["a"]), shares(np.array([0]), np.array([True]), ["b"])
    assert mean_shares([one, other]).names == ("a", "b")
    assert mean_shares([one, other]).chosen.tolist() == [0.5, 0.5]


def test_losses_are_ranked_within_their_batch():
    # All losses of the second batch are smaller than those of the first: only the order inside each counts.
    records = [batch(1, [9.0, 8.0, 7.0, 6.0], [0, 1]), batch(2, [0.1, 0.4, 0.3, 0.2], [1, 2])]
    found = by_loss(candidacies(records), 4)
    assert found is not None
    assert found.names == ("smallest", "2.", "3.", "largest")
    assert found.chosen.tolist() == [0, 0, 0.5, 0.5]
    assert by_loss(candidacies([batch(1, [None] * 4, [0])]), 4) is None


def test_a_loss_that_is_missing_has_no_rank():
    run = candidacies([batch(1, [2.0, None, 1.0, 3.0], [3, 1])])
    assert rank_bins([run]) == 3
    found = by_loss(run, 3)
    assert found is not None
    assert found.names == ("smallest", "2.", "largest")
    assert found.chosen.tolist() == [0, 0, 1]


def test_runs_of_unlike_batches_have_the_same_groups_of_ranks():
    small = candidacies([batch(1, [1.0, 2.0, 3.0, 4.0], [3])])
    large = candidacies([batch(1, [float(i) for i in range(20)], [0, 19])])
    unknown = candidacies([batch(1, [None] * 2, [0])])
    assert rank_bins([large]) == 10
    assert rank_bins([unknown]) == rank_bins([]) == 0
    bins = rank_bins([small, large, unknown])
    ranked = [shares for run in (small, large) if (shares := by_loss(run, bins)) is not None]
    found = mean_shares(ranked)
    assert found.names == ("smallest", "2.", "3.", "largest")
    assert found.candidates.tolist() == [0.25] * 4
    assert found.chosen.tolist() == [0.25, 0, 0, 0.75]


def test_lengths_are_grouped_by_how_common_they_are():
    edges = length_edges([5] * 80 + list(range(6, 26)))
    assert edges[0] == 5
    assert edges[-1] == 26
    records = [batch(1, [None] * 4, [0, 1], ids=["s", "m", "l", "gone"])]
    found = by_length(candidacies(records), {"s": 5, "m": 9, "l": 25}, np.array([5, 6, 10, 26]))
    assert found is not None
    assert found.names == ("5", "6 to 9", "10 to 25")
    assert found.candidates.tolist() == pytest.approx([1 / 3] * 3)
    assert found.chosen.tolist() == [0.5, 0.5, 0]
    assert by_length(candidacies(records), {}, edges) is None


def test_the_course_of_a_run_is_cut_into_equal_parts():
    records = [batch(step, [None] * 4, [0, 2] if step <= 10 else [1, 3]) for step in range(1, 21)]
    found = course(candidacies(records))
    assert found.steps.tolist() == list(range(1, 20, 2))
    assert found.chosen[:, 0].tolist() == [1.0] * 5 + [0.0] * 5
    assert (found.candidates == 0.5).all()
    shorter = course(candidacies(records[:3]))
    assert mean_course([found, shorter]).chosen.tolist() == found.chosen.tolist()


def test_ranks_agree_with_a_sort_of_every_batch():
    rng = np.random.default_rng(0)
    records = [batch(step, rng.normal(size=20).tolist(), rng.permutation(20)[:5].tolist()) for step in range(1, 9)]
    found = by_loss(candidacies(records), 10)
    assert found is not None
    counts = np.zeros(10)
    for record in records:
        order = [record["candidates"][i] for i in np.argsort(record["losses"])]
        for name in record["chosen"]:
            counts[order.index(name) // 2] += 1
    assert found.chosen.tolist() == pytest.approx((counts / counts.sum()).tolist())


def test_no_records_are_no_rows():
    found = candidacies([])
    assert isinstance(found, Candidacies)
    assert len(found) == 0


def test_few_lengths_below_a_common_one_are_no_group_of_their_own():
    assert length_edges([16, 30, *[64] * 98]).tolist() == [16, 65]
    assert length_edges([*range(20, 30), *[64] * 90]).tolist() == [20, 29, 65]
