"""Sums, differences and multiples of rules."""

import jax
import numpy as np
import pytest
from random_signals import INF, KEY, NAN, UDS, choose, picked, random_signals, with_one, with_some_invalid
from slow_rules import SlowQueue, allowed_in, slow_greedy, slow_scores

from greats_jax.errors import ArgumentError
from greats_jax.selection import Selection, get, register, top_k


def test_a_sum_ranks_by_the_sum_of_scores_less_the_sum_of_overlaps():
    for seed in range(10):
        signals = with_some_invalid(random_signals(seed), seed)
        gram = np.asarray(signals.gram, np.float64)
        for text, rule, overlap in (
            ("0.5*greats + 2*max_loss", {"greats": 0.5, "max_loss": 2}, 0.5 * 0.3 * gram),
            ("sbert - 0.2*rho_loss", {"sbert": 1, "rho_loss": -0.2}, None),
            ("greats + greats", {"greats": 2}, 2 * 0.3 * gram),
            ("2*greats - cosine", {"greats": 2, "cosine": -1}, 2 * 0.3 * gram),
        ):
            scores = sum(factor * slow_scores(name, signals) for name, factor in rule.items())
            found = choose(text, signals, 3, rate=0.3)
            assert picked(found) == slow_greedy(scores, overlap, 3, allowed_in(signals)), text
            np.testing.assert_allclose(found.scores, scores, rtol=1e-4, atol=1e-5)


def test_rules_add_up_in_python_as_in_text():
    signals = random_signals(0)
    rule = 0.5 * get("greats") + get("max_loss") * 2 - get("sbert")
    assert rule.name == "0.5*greats + 2*max_loss - sbert"
    found = rule(signals, 3, learning_rate=0.3)
    assert picked(found) == picked(choose("0.5*greats + 2*max_loss - sbert", signals, 3, rate=0.3))
    backwards = choose("-max_loss", signals, 7)
    assert picked(backwards) == picked(choose("max_loss", signals, 7))[::-1]


def test_a_sum_needs_what_its_parts_need():
    needs = {name: get(name).needs for name in ("greats", "uds", "sbert", "max_loss", "greats_adam")}
    assert get("0.5*greats + 0.5*uds").needs == needs["greats"] | needs["uds"]
    assert get("sbert - max_loss").needs == needs["sbert"] | needs["max_loss"]
    assert get("2*max_loss").needs == (-get("max_loss")).needs == needs["max_loss"]
    wrapped = get("quota(diverse(max_loss) + normalised(greats_adam), share=0.5)").needs
    assert wrapped == needs["max_loss"] | needs["greats_adam"] | {"gram", "sources"}


def test_a_candidate_that_breaks_one_part_is_left_out_of_the_sum():
    signals = random_signals(0)
    for value in (NAN, INF, -INF):
        broken = signals._replace(reference_losses=with_one(signals.reference_losses, 2, value))
        for text in ("greats + rho_loss", "greats - 0*rho_loss", "normalised(rho_loss) + max_loss"):
            assert sorted(picked(choose(text, broken, 7))) == [0, 1, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "text",
    [f"max_loss + {UDS}", f"max_loss + 0.5*{UDS}", f"0.5*(max_loss + normalised({UDS}))", f"diverse({UDS}) + max_loss"],
)
def test_memory_in_a_sum_is_of_the_final_choice(text):
    # A loss of 100 for candidate 6 decides; UDS alone would choose another.
    signals = random_signals(1)._replace(losses=with_one(np.zeros(7), 6, 100.0))
    assert picked(choose(UDS, signals, 1)) != [6]
    found = choose(text, signals, 1)
    assert picked(found) == [6]
    queue = jax.tree.leaves(found.memory)
    pushed, rows = sorted(queue, key=lambda leaf: leaf.ndim)
    assert int(pushed) == 1
    np.testing.assert_array_equal(rows[0], signals.logit_summaries["projection"][6])


def test_a_sum_with_uds_follows_its_queue_over_many_steps():
    text, slow = f"0.7*max_loss + 0.3*{UDS}", SlowQueue(5)
    memory = None
    for step in range(10):
        signals = with_some_invalid(random_signals(step), step)._replace(memory=memory)
        found = choose(text, signals, 3)
        scores = 0.7 * slow_scores("max_loss", signals) + 0.3 * slow.scores(signals)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
        expected = slow_greedy(scores, None, 3, allowed_in(signals))
        assert picked(found) == expected
        slow.push(signals, expected)
        memory = found.memory


def test_two_memories_are_kept_apart():
    text = f"{UDS} + 2*uds(size=3, width=4, alpha=0.1)"
    signals = random_signals(0)
    first = choose(text, signals, 3)
    sizes = sorted(leaf.shape[0] for leaf in jax.tree.leaves(first.memory) if leaf.ndim)
    assert sizes == [3, 5]
    assert [int(leaf) for leaf in jax.tree.leaves(first.memory) if not leaf.ndim] == [3, 3]


def test_a_rule_that_returns_its_own_memory_keeps_it_in_a_sum():
    @register("counting_test_rule", needs={"losses", "memory"}, init=lambda: np.zeros((), np.int32))
    def counting(signals, k, *, learning_rate, key) -> Selection:
        return top_k(signals.losses, k, signals.valid)._replace(memory=signals.memory + 1)

    text = "0.5*(counting_test_rule + max_loss) - greats"
    found = choose(text, random_signals(0), 3)
    again = choose(text, random_signals(1)._replace(memory=found.memory), 3)
    assert [int(leaf) for leaf in jax.tree.leaves(again.memory)] == [2]


def test_a_sum_without_memory_has_none():
    assert get("greats + max_loss").init is None
    assert choose("greats + max_loss", random_signals(0), 3).memory is None


@pytest.mark.parametrize("name", ["random_k", "regular", "layer_wise"])
def test_a_rule_without_scores_cannot_be_added(name):
    with pytest.raises(ArgumentError, match=f"rule '{name}' gives no score per candidate"):
        choose(f"max_loss + {name}", random_signals(0), 3)


CHOOSY = ["opus", "partition_sel", "soft(max_loss)", "sampled(max_loss)", "above(max_loss)", "quota(max_loss)"]


@pytest.mark.parametrize("inner", CHOOSY)
@pytest.mark.parametrize(
    "around",
    ["0.5*{}", "-{}", "{} + max_loss", "greats - {}", "normalised({})", "sampled({})", "diverse({})", "quota({})"],
)
def test_a_rule_whose_choice_is_more_than_its_scores_is_not_reduced_to_them(inner, around):
    with pytest.raises(ArgumentError, match=r"lose how it draws, limits or weighs its picks: only soft and above"):
        get(around.format(inner))


@pytest.mark.parametrize("inner", CHOOSY)
@pytest.mark.parametrize("around", ["soft({})", "above({}, threshold=-99)"])
def test_what_keeps_the_picks_goes_around_any_rule_with_scores(inner, around):
    signals = random_signals(3)
    inside = jax.random.fold_in(KEY, 0)  # the key of the first part
    assert picked(choose(around.format(inner), signals, 3)) == picked(choose(inner, signals, 3, key=inside))


def test_a_rule_of_ones_own_says_that_scores_are_not_all():
    @register("drawing_test_rule", needs={"losses"}, by_scores=False)
    def drawing(signals, k, *, learning_rate, key) -> Selection:
        return top_k(signals.losses, k, signals.valid)

    with pytest.raises(ArgumentError, match="'drawing_test_rule'"):
        get("drawing_test_rule + max_loss")


def test_only_rules_and_numbers_combine():
    for combine in (lambda r: r + 1, lambda r: 1 - r, lambda r: r * r, lambda r: r * "2"):
        with pytest.raises(TypeError):
            combine(get("greats"))
