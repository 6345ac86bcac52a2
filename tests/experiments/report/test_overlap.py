import numpy as np
import pytest

from greats_jax.experiments.report.overlap import chance_jaccard, overlaps


def record(step: int, chosen: str, candidates: str = "abcdef") -> dict:
    return {
        "step": step, "micro_batch": 0, "candidates": list(candidates), "chosen": list(chosen),
        "weights": [1.0] * len(chosen),
    }  # fmt: skip


@pytest.mark.parametrize(("n", "k", "m"), [(6, 3, 3), (8, 2, 5), (4, 4, 2), (5, 1, 1)])
def test_chance_is_what_random_choices_have(n, k, m):
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(4000):
        one, other = set(rng.permutation(n)[:k].tolist()), set(rng.permutation(n)[:m].tolist())
        seen.append(len(one & other) / len(one | other))
    assert chance_jaccard(n, k, m) == pytest.approx(np.mean(seen), abs=0.02)


def test_chance_of_nothing_is_nothing():
    assert np.isnan(chance_jaccard(5, 0, 0))


def test_methods_are_compared_on_the_same_candidates_of_the_same_seed():
    runs = {
        "one": [[record(1, "abc"), record(2, "abc")], [record(1, "abc")]],
        "other": [[record(1, "bcd"), record(2, "def")], [record(1, "abc", "abcxyz")]],
        "absent": [[], []],
    }
    (found,) = overlaps(runs)
    assert (found.first, found.second, found.batches) == ("one", "other", 2)  # the third had other candidates
    assert found.jaccard == pytest.approx((2 / 4 + 0) / 2)
    assert found.chance == pytest.approx(chance_jaccard(6, 3, 3))


def test_a_weight_of_0_is_no_choice():
    dropped = record(1, "abc") | {"weights": [1.0, 1.0, 0.0]}
    (found,) = overlaps({"one": [[dropped]], "other": [[record(1, "ab")]]})
    assert found.jaccard == 1
