"""Equal updates, equal time and equal candidates, on curves whose values are known."""

import math

import numpy as np
import pytest
from made_curves import made_curve
from scipy import stats

from greats_jax.errors import ArgumentError
from greats_jax.experiments.outcomes import first_at_or_below, headline_metric, outcomes


def by_method(found):
    return {outcome.method: outcome for outcome in found}


@pytest.fixture
def one_seed():
    return by_method(
        outcomes(
            [
                made_curve("greats", [4.0, 3.0, 2.0], pace=2.0),
                made_curve("random_k", [4.0, 3.5, 3.0], pace=1.0),
                made_curve("regular", [4.0, 3.4, 2.5], pace=1.5),
                made_curve("target_only", [4.0, 2.0, 1.0], pace=1.0, draws=2),
            ]
        )
    )


def test_equal_updates_are_the_last_ones(one_seed):
    assert [outcome.final.mean for outcome in one_seed.values()] == [2.0, 3.0, 2.5, 1.0]


def test_equal_time_is_where_the_fastest_ended(one_seed):
    # 20 seconds: of greats 10 updates, of regular 13 1/3, on the line from 3.4 to 2.5.
    assert one_seed["greats"].equal_seconds.mean == pytest.approx(3.0)
    assert one_seed["random_k"].equal_seconds.mean == pytest.approx(3.0)
    assert one_seed["regular"].equal_seconds.mean == pytest.approx(3.4 - 0.9 / 3)


def test_what_is_equal_time_does_not_depend_on_target_only():
    curves = [made_curve("greats", [4.0, 3.0, 2.0], pace=2.0), made_curve("random_k", [4.0, 3.5, 3.0], pace=1.0)]
    alone = by_method(outcomes(curves))
    for pace in 0.1, 10.0:
        found = by_method(outcomes([*curves, made_curve("target_only", [4.0, 2.0, 1.0], pace=pace)]))
        assert [found[name].equal_seconds for name in alone] == [one.equal_seconds for one in alone.values()]
        # Ended by then, it counts with its last loss; else on the line, 2 of 10 updates in.
        assert found["target_only"].equal_seconds.mean == pytest.approx(1.0 if pace < 1 else 3.6)


def test_equal_candidates_leave_out_what_draws_none(one_seed):
    assert one_seed["greats"].equal_candidates.mean == pytest.approx(2.0)
    assert math.isnan(one_seed["target_only"].equal_candidates.mean)
    assert one_seed["target_only"].equal_candidates.n == 0


def test_a_rule_that_draws_none_does_so_by_any_name():
    own = made_curve("target_big", [4.0, 2.0, 1.0], pace=0.1, draws=2, rule="target_only")
    found = by_method(outcomes([made_curve("greats", [4.0, 3.0, 2.0]), made_curve("random_k", [4.0, 3.5, 3.0]), own]))
    assert found["greats"].equal_seconds.mean == 2.0
    assert found["greats"].equal_candidates.mean == 2.0
    assert found["target_big"].equal_candidates.n == 0


def test_a_method_with_larger_batches_is_read_earlier():
    found = by_method(
        outcomes([made_curve("greats", [4.0, 3.0, 2.0], draws=16), made_curve("random_k", [4.0, 3.5, 3])])
    )
    assert found["greats"].equal_candidates.mean == pytest.approx(3.0)
    assert found["greats"].final.mean == 2.0


def test_a_longer_run_is_read_where_the_shorter_one_ended():
    found = by_method(outcomes([made_curve("greats", [4.0, 3.0, 2.0, 1.0]), made_curve("random_k", [4.0, 3.5, 3.0])]))
    assert found["greats"].final.mean == 2.0


def test_time_to_target_is_on_the_line_between_evaluations(one_seed):
    greats, random = one_seed["greats"], one_seed["random_k"]
    # Regular ends at 2.5, which greats passes half-way between updates 10 and 20.
    assert greats.steps_to_target is not None
    assert greats.steps_to_target.mean == pytest.approx(15)
    assert greats.seconds_to_target is not None
    assert greats.seconds_to_target.mean == pytest.approx(30)
    assert greats.seconds_share is not None
    assert greats.seconds_share.mean == pytest.approx(1.0)
    assert (greats.reached, random.reached, random.steps_to_target) == (1, 0, None)
    assert one_seed["regular"].reached == 1
    assert one_seed["regular"].steps_share is not None
    assert one_seed["regular"].steps_share.mean == 1.0


@pytest.mark.parametrize(
    ("values", "level", "place"),
    [([3, 2, 1], 2.5, 0.5), ([3, 2, 1], 2, 1.0), ([3, 2, 1], 0.5, None), ([1, 2], 1.5, 0.0), ([math.nan, 1], 2, 1.0)],
)
def test_where_a_curve_first_is_as_low(values, level, place):
    assert first_at_or_below(np.array(values, float), level) == place


def test_seeds_that_diverged_are_counted_apart():
    curves = [made_curve("random_k", [4.0, 3.0], seed=seed) for seed in range(3)]
    curves += [made_curve("greats", [4.0, 2.0 if seed else math.nan], seed=seed) for seed in range(3)]
    found = by_method(outcomes(curves))
    assert (found["greats"].n, found["greats"].diverged, found["greats"].final.mean) == (2, 1, 2.0)
    assert (found["random_k"].n, found["random_k"].diverged) == (3, 0)


def test_a_seed_that_diverged_after_the_shortest_run_had_ended_counts_nowhere():
    curves = [made_curve("fast", [3.0, 2.0, math.nan], seed=seed) for seed in range(3)]
    curves += [made_curve("slow", [3.0, 2.5], seed=seed) for seed in range(3)]
    curves += [made_curve("random_k", [3.0, 2.8, 2.6], seed=seed) for seed in range(3)]
    fast = by_method(outcomes(curves))["fast"]
    assert (fast.n, fast.diverged) == (0, 3)
    assert [one.n for one in (fast.final, fast.equal_seconds, fast.equal_candidates)] == [0, 0, 0]
    assert fast.against_random is not None
    assert fast.against_random.n == 0


@pytest.mark.parametrize("aim", [[3.0, 3.5], [3.0, 3.0], [3.0, math.nan]])
def test_where_the_target_ended_no_lower_than_it_began_nothing_is_reached(aim):
    curves = [made_curve("regular", aim), made_curve("greats", [3.0, 2.0])]
    curves += [made_curve("regular", [3.0, 2.5], seed=1), made_curve("greats", [3.0, 2.0], seed=1)]
    greats = by_method(outcomes(curves))["greats"]
    assert (greats.reached, greats.aimed, greats.n) == (1, 1, 2)
    assert greats.steps_to_target is not None
    assert greats.steps_to_target.mean == pytest.approx(5.0)


def curves_of_five_seeds():
    rng = np.random.default_rng(3)
    level = rng.normal(0, 0.3, 5)  # seeds differ far more than methods do within one
    gain = {"greats": 0.2, "random_k": 0.0, "regular": 0.02, "max_loss": -0.1}
    noise = {name: rng.normal(0, 0.02, 5) for name in gain}
    return [
        made_curve(name, [4.0, 3.0 + level[seed] - gain[name] + noise[name][seed]], seed=seed)
        for seed in range(5)
        for name in gain
    ]


def test_differences_are_within_seeds_and_adjusted_for_their_number():
    curves = curves_of_five_seeds()
    found = by_method(outcomes(curves))
    last = {name: [float(c.metrics["test_loss"][-1]) for c in curves if c.method == name] for name in found}
    raw = {n: float(stats.ttest_rel(last[n], last["random_k"]).pvalue) for n in ("greats", "regular", "max_loss")}
    for place, name in enumerate(sorted(raw, key=lambda name: raw[name])):
        difference = found[name].against_random
        assert difference is not None
        assert difference.mean == pytest.approx(np.mean(last[name]) - np.mean(last["random_k"]))
        assert difference.p >= raw[name] * (3 - place) * (1 - 1e-9)
    assert found["random_k"].against_random is None
    assert found["regular"].against_regular is None
    greats = found["greats"]
    assert greats.against_random is not None
    assert greats.against_random.p < 0.01
    assert greats.final.high - greats.final.low > 5 * (greats.against_random.high - greats.against_random.low)


def test_settings_are_apart_and_other_scores_go_along():
    curves = [
        made_curve(name, [4.0, value + shift], setting=setting)
        for setting, shift in (("lr=1", 0.0), ("lr=2", 1.0))
        for name, value in (("greats", 2.0), ("random_k", 3.0))
    ]
    found = outcomes(curves)
    assert [(o.setting, o.method, o.final.mean) for o in found] == [
        ("lr=1", "greats", 2.0), ("lr=1", "random_k", 3.0), ("lr=2", "greats", 3.0), ("lr=2", "random_k", 4.0),
    ]  # fmt: skip
    assert {name: value.mean for name, value in found[0].scores.items()} == {"validation_loss": pytest.approx(1.9)}
    assert found[0].against_regular is None


def test_a_seed_that_one_method_lacks_is_compared_without_it():
    curves = [made_curve("random_k", [4.0, 3.0], seed=s) for s in range(3)]
    curves += [made_curve("greats", [4.0, 2.0], seed=s) for s in range(2)]
    found = by_method(outcomes(curves))
    assert found["greats"].against_random is not None
    assert (found["greats"].n, found["random_k"].n, found["greats"].against_random.n) == (2, 3, 2)


def test_what_was_not_measured_is_refused():
    with pytest.raises(ArgumentError, match="'accuracy' was not measured in every run; measured: test_loss"):
        outcomes([made_curve("greats", [1.0])], metric="accuracy")


def test_without_test_examples_the_validation_loss_is_compared():
    curve = made_curve("greats", [4.0, 3.0])
    curve.metrics["test_loss"][:] = math.nan
    assert headline_metric([curve]) == "validation_loss"
    assert outcomes([curve])[0].final.mean == pytest.approx(2.9)
