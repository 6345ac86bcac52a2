"""What can be put around a rule."""

import jax
import numpy as np
import pytest
from random_signals import (
    NAN,
    UDS,
    choose,
    picked,
    random_signals,
    signals_of,
    with_one,
    with_one_gram,
    with_some_invalid,
)
from slow_rules import allowed_in, slow_greedy, slow_picks, slow_scores

from greats_jax.errors import ArgumentError
from greats_jax.selection import above, diverse, get, normalised, quota, sampled, soft


def slow_level(scores: np.ndarray, allowed: list[int]) -> np.ndarray:
    """Standardised over the candidates that can be picked."""
    return (scores - scores[allowed].mean()) / scores[allowed].std()


def each_seed():
    for seed in range(10):
        signals = with_some_invalid(random_signals(seed), seed)
        if len(allowed_in(signals)) > 1:
            yield seed, signals


@pytest.mark.parametrize("name", ["greats", "max_loss", "cosine"])
def test_normalised_changes_the_scale_and_not_the_picks(name):
    for _, signals in each_seed():
        found = choose(f"normalised({name})", signals, 3, rate=0.5)
        assert picked(found) == slow_picks(name, signals, 3, 0.5)
        allowed = allowed_in(signals)
        expected = slow_level(slow_scores(name, signals), allowed)[allowed]
        np.testing.assert_allclose(np.asarray(found.scores)[allowed], expected, rtol=1e-4, atol=1e-5)


def test_normalised_keeps_the_overlap_in_proportion():
    signals = random_signals(3)
    plain, scaled = (choose(name, signals, 3, rate=0.5) for name in ("greats", "normalised(greats)"))
    deviation = np.asarray(signals.alignment).std()
    np.testing.assert_allclose(scaled.overlap * deviation, plain.overlap, rtol=1e-4)


def test_soft_weighs_the_picks_by_their_scores():
    for _, signals in each_seed():
        found = choose("soft(greats, temperature=0.5)", signals, 3, rate=0.5)
        picks = slow_picks("greats", signals, 3, 0.5)
        levels = np.exp(slow_level(slow_scores("greats", signals), allowed_in(signals))[picks] / 0.5)
        assert picked(found) == picks
        np.testing.assert_allclose(found.weights[: len(picks)], levels / levels.sum(), rtol=1e-4)


def test_soft_keeps_what_the_rule_inside_chose():
    signals = random_signals(0)._replace(sources=np.zeros(7, np.int32))
    limited = choose("soft(quota(max_loss, share=0.3))", signals, 3)
    assert picked(limited) == slow_picks("max_loss", signals, 1, 0.1), "the quota leaves one of a single source"
    drawn = {tuple(picked(choose("soft(opus)", signals, 3, key=jax.random.key(i)))) for i in range(5)}
    assert len(drawn) > 1, "a draw stays a draw"


def test_soft_weights_of_equal_scores_are_equal():
    signals = random_signals(0)._replace(losses=np.full(7, 0.1))
    np.testing.assert_allclose(choose("soft(max_loss)", signals, 3).weights, [1 / 3] * 3, rtol=1e-6)


def test_above_drops_picks_below_the_threshold():
    for _, signals in each_seed():
        found = choose("above(greats_first_order, threshold=0.5)", signals, 3)
        expected = [
            i for i in slow_picks("greats_first_order", signals, 3, 0.1) if np.asarray(signals.alignment)[i] > 0.5
        ]
        assert picked(found) == expected
        assert found.indices.tolist() == expected + [0] * (3 - len(expected))
    assert not np.any(choose("above(max_loss, threshold=99)", random_signals(0), 3).weights)


def test_above_adds_no_candidate_that_the_rule_left_out():
    gradients = np.asarray([[2.0, 0.0], [1.9, 0.0], [0.0, -0.1]])
    signals = signals_of(alignment=gradients.sum(1), gram=gradients @ gradients.T)
    assert picked(choose("greats", signals, 2, rate=1.0)) == [0, 2]
    assert picked(choose("above(greats)", signals, 2, rate=1.0)) == [0]


def test_a_score_at_the_threshold_is_not_above_it():
    signals = signals_of(losses=np.asarray([1.0, 2.0, 3.0]))
    assert picked(choose("above(max_loss, threshold=2)", signals, 3)) == [2]


def test_diverse_lowers_scores_by_cosines_in_standard_deviations():
    for _, signals in each_seed():
        gram = np.asarray(signals.gram, np.float64)
        lengths = np.sqrt(np.diagonal(gram))
        allowed = allowed_in(signals)
        for name, rate in (("max_loss", 0.0), ("greats", 0.5)):
            scores = slow_scores(name, signals)
            overlap = rate * gram + 1.5 * scores[allowed].std() * gram / np.outer(lengths, lengths)
            found = choose(f"diverse({name}, strength=1.5)", signals, 3, rate=rate)
            assert picked(found) == slow_greedy(scores, overlap, 3, allowed)


def test_diverse_avoids_a_duplicate_at_any_learning_rate():
    gradients = np.asarray([[2.0, 0.0], [2.0, 0.0], [0.0, 1.5], [0.0, 0.0]])
    signals = signals_of(alignment=gradients.sum(1), gram=gradients @ gradients.T)
    assert picked(choose("greats", signals, 2, rate=0.0)) == [0, 1]
    assert picked(choose("diverse(greats)", signals, 2, rate=0.0)) == [0, 2]


def test_diverse_tells_apart_what_scores_do_not():
    gradients = np.asarray([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    signals = signals_of(losses=np.full(3, 0.1), gram=gradients @ gradients.T)
    assert picked(choose("diverse(max_loss)", signals, 2)) == [0, 2]


@pytest.mark.parametrize("name", ["diverse(max_loss)", "diverse(greats)"])
def test_diverse_leaves_out_a_candidate_whose_gradient_is_not_finite(name):
    signals = random_signals(0)
    broken = signals._replace(gram=with_one_gram(signals.gram, 2, NAN))
    found = choose(name, broken, 7)
    assert sorted(picked(found)) == [0, 1, 3, 4, 5, 6]
    if name == "diverse(greats)":
        invalid = signals._replace(valid=with_one(signals.valid, 2, False))
        assert picked(found) == picked(choose(name, invalid, 7))


@pytest.mark.parametrize(("share", "limit"), [(0.3, 1), (0.34, 2), (0.7, 3), (1.0, 3)])
def test_quota_limits_every_source(share, limit):
    for _, signals in each_seed():
        overlap = 0.5 * np.asarray(signals.gram, np.float64)
        found = choose(f"quota(greats, share={share})", signals, 3, rate=0.5)
        sources = np.asarray(signals.sources)
        scores = slow_scores("greats", signals)
        assert picked(found) == slow_greedy(scores, overlap, 3, allowed_in(signals), sources, limit)


def test_a_quota_of_a_tenth_of_ten_is_one_however_the_product_is_rounded():
    signals = signals_of(losses=np.arange(20.0), sources=np.arange(20) % 2)
    for share, each in ((0.1, 1), (0.3, 3), (0.7, 7)):
        assert len(picked(choose(f"quota(max_loss, share={share})", signals, 10))) == min(10, 2 * each)


def test_quota_leaves_slots_empty_where_one_source_is_all_there_is():
    signals = random_signals(0)._replace(sources=np.full(7, 4))
    found = choose("quota(max_loss, share=0.5)", signals, 3)
    assert picked(found) == slow_picks("max_loss", signals, 2, 0.1)
    assert found.indices[2] == 0


def test_sampled_draws_from_standardised_scores():
    signals = random_signals(0)
    cold = choose("sampled(max_loss, temperature=1e-6)", signals, 3)
    assert picked(cold) == slow_picks("max_loss", signals, 3, 0.1)
    np.testing.assert_array_equal(cold.scores, signals.losses)
    for seed in range(5):
        key = jax.random.key(seed)
        found = choose("sampled(max_loss)", signals, 3, key=key)
        larger = choose("sampled(max_loss)", signals._replace(losses=50 * np.asarray(signals.losses) + 7), 3, key=key)
        assert picked(found) == picked(larger)


@pytest.mark.parametrize("name", ["normalised", "soft", "sampled", "above", "diverse", "quota"])
def test_every_wrapper_stands_degenerate_signals(name):
    signals = random_signals(0)
    equal = signals._replace(losses=np.full(7, 0.1), gram=0.1 * np.eye(7), sources=np.arange(7))
    found = choose(f"{name}(max_loss)", equal, 3)
    if name != "sampled":
        assert picked(found) == [0, 1, 2]
    broken = equal._replace(losses=np.asarray([NAN, 0.1, 0.1, 0.1, 0.1, 0.1, np.inf]))
    assert not set(picked(choose(f"{name}(max_loss)", broken, 7))) & {0, 6}
    for useless in (signals._replace(valid=np.zeros(7, bool)), signals._replace(losses=np.full(7, NAN))):
        empty = choose(f"{name}(max_loss)", useless, 3)
        assert empty.weights.tolist() == [0.0] * 3
        assert empty.indices.tolist() == [0] * 3


@pytest.mark.parametrize("wrap", [normalised, soft, sampled, above, diverse, quota])
def test_a_wrapper_needs_what_its_rule_needs_and_keeps_its_memory(wrap):
    rule = wrap(get(UDS))
    extra = {"diverse": {"gram"}, "quota": {"sources"}}.get(wrap.__name__, set())
    assert rule.needs == get(UDS).needs | extra
    signals = random_signals(0)
    found = choose(f"{wrap.__name__}({UDS})", signals, 3)
    rows = np.asarray(found.memory[0]["rows"])
    assert int(found.memory[0]["pushed"]) == len(picked(found)) > 0
    np.testing.assert_array_equal(
        rows[: len(picked(found))], np.asarray(signals.logit_summaries["projection"])[picked(found)]
    )


@pytest.mark.parametrize("name", ["random_k", "regular", "layer_wise"])
def test_a_rule_without_scores_cannot_be_wrapped(name):
    with pytest.raises(ArgumentError, match=f"rule '{name}' gives no score per candidate"):
        choose(f"quota({name})", random_signals(0), 3)
