"""The verdict says what the numbers say, and no more."""

import math

import numpy as np
import pytest
from made_curves import made_curve

from greats_jax.experiments.outcomes import outcomes
from greats_jax.experiments.verdict import verdict


def told(gain: float, pace: float = 1.0, seeds: int = 5, noise: float = 0.01, target_only: float = -1.0) -> str:
    """The verdict where greats gains so much on random_k and takes so many times as long."""
    rng = np.random.default_rng(1)
    curves = []
    for seed in range(seeds):
        last = 3.0 + rng.normal(0, 0.2)
        levels = {"greats": last - gain, "random_k": last, "regular": last - 0.1, "target_only": last - target_only}
        for name, value in levels.items():
            own = value + rng.normal(0, noise)
            curves.append(made_curve(name, np.linspace(4.5, own, 11), seed=seed, pace=pace if name == "greats" else 1))
    return verdict(outcomes(curves), ["greats"])


def test_it_pays():
    text = told(0.3)
    assert text.startswith("greats pays: better than choosing at random, also in equal time.")
    assert "Against random_k: 26" in text
    assert "% lower (95 % between" in text
    assert "It came to the last perplexity of regular in 5 of 5 runs, after 8" in text


def test_it_pays_per_update_and_not_per_second():
    assert told(0.3, pace=3.0).startswith("greats pays per update but not per second: what choosing costs is more")


def test_in_equal_time_it_may_not_be_shown():
    text = told(0.3, pace=1.2, noise=0.1)
    assert text.startswith("greats pays per update: better than choosing at random. In equal time that is not shown.")


def test_it_does_not_pay():
    assert told(-0.3).startswith("greats does not pay: it is worse than choosing at random.")


def test_five_seeds_cannot_tell():
    text = told(0.0, noise=0.1)
    assert text.startswith("greats does not show that it pays: 5 seeds cannot tell it from choosing at random.")


@pytest.mark.parametrize(("seeds", "words"), [(1, "cannot be told from one seed"), (3, "3 seeds can only show very")])
def test_few_seeds(seeds, words):
    assert words in told(0.3, seeds=seeds)


def test_training_on_the_validation_examples_may_be_better_still():
    assert "(target_only) ended lower still" in told(0.3, target_only=0.6)
    assert "(target_only) ended lower still" not in told(0.3)


def test_a_method_that_diverged_is_never_best():
    curves = [made_curve("random_k", [4.5, 3.0 + seed / 10], seed=seed) for seed in range(5)]
    curves += [made_curve("greats", [4.5, 2.8 + seed / 11], seed=seed) for seed in range(5)]
    wild = [made_curve("wild", [4.5, math.nan if seed else 1.0], seed=seed) for seed in range(5)]
    text = verdict(outcomes([*curves, *wild]), ["greats", "wild"])
    assert text.startswith("Of greats, wild, greats did best. wild: 4 of 5 ended without a finite loss. greats ")
    text = verdict(outcomes([*curves, *wild]), ["wild"])
    assert text == "wild: 4 of 5 ended without a finite loss. So whether wild pays cannot be told."


def test_methods_are_ranked_over_the_seeds_they_share():
    # The seed that b lacks is a hard one: over its own seeds b would be ahead, though a is lower in every one of them.
    hard = [0.0, 0.01, 0.02, 1.0]
    curves = [made_curve("a", [4.5, 2.0 + level], seed=seed) for seed, level in enumerate(hard)]
    curves += [made_curve("b", [4.5, 2.1 + level], seed=seed) for seed, level in enumerate(hard[:3])]
    curves += [made_curve("random_k", [4.5, 2.2 + level], seed=seed) for seed, level in enumerate(hard[:3])]
    text = verdict(outcomes(curves), ["a", "b"])
    assert text.startswith("Of a, b, a did best over the 3 seeds they share. a ")
    assert "a 9.559 (4 seeds), random_k 9.116 (3 seeds)." in text
    apart = [made_curve("a", [4.5, 2.0]), made_curve("b", [4.5, 2.1], seed=1)]
    assert verdict(outcomes(apart), ["a", "b"]).startswith("Of a, b, a did best, each over seeds of its own.")
    both = [*curves[:4], made_curve("target_only", [4.5, 1.0 + hard[3]], seed=3)]
    assert "(target_only) ended lower still" in verdict(outcomes(both), ["a"])
    both[-1].metrics["test_loss"][-1] = 3.1
    assert "(target_only) ended lower still" not in verdict(outcomes(both), ["a"])


def test_chance_may_have_diverged():
    curves = [made_curve("greats", [4.5, 3.0], seed=seed) for seed in range(2)]
    curves += [made_curve("random_k", [4.5, math.nan], seed=seed) for seed in range(2)]
    text = verdict(outcomes(curves))
    assert "random_k: 2 of 2 ended without a finite loss." in text
    assert "Whether greats pays cannot be told: no seed of random_k that ended with a finite loss is its own." in text
    curves[3].metrics["test_loss"][-1] = 3.5
    assert "Whether greats pays cannot be told from one seed." in verdict(outcomes(curves))


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ((4.0, 4.2), "regular ended no lower than it began, so there is nothing to reach."),
        ((4.0, 3.5), "in 1 of 1 runs with something to reach, after 50 % of its updates"),
        ((3.5, 3.5), "in 2 of 2 runs, after 50 % of its updates"),
    ],
)
def test_what_there_is_to_reach(last, words):
    curves = [made_curve("regular", [4.0, value], seed=seed) for seed, value in enumerate(last)]
    curves += [made_curve(name, [4.0, 3.0], seed=seed) for name in ("greats", "random_k") for seed in range(2)]
    assert words in verdict(outcomes(curves), ["greats"])


def test_nothing_to_say():
    assert verdict([]) == "No run has finished yet."
    alone = outcomes([made_curve("random_k", [4.0, 3.0])])
    assert verdict(alone, ["greats"]) == "No selection method has finished here, so there is nothing to compare."
    lonely = outcomes([made_curve("greats", [4.0, 3.0])])
    assert "random_k is not in the comparison" in verdict(lonely, ["greats"])
    bases = outcomes([made_curve("random_k", [4.0, 3.0]), made_curve("regular", [4.0, 2.9])])
    text = verdict(bases, ["random_k"])
    assert text.startswith("random_k is what methods are compared with: whether selection pays takes one that selects.")
    assert "random_k 20.09, regular 18.17. Against regular: 10.5 % higher (one pair)" in text
    assert " pays: " not in verdict(bases, ["regular"])


def test_every_setting_has_its_own():
    curves = [
        made_curve(name, [4.0, 3.0], setting=setting, seed=seed)
        for setting in ("batch=4", "batch=8")
        for name in ("greats", "random_k")
        for seed in range(2)
    ]
    parts = verdict(outcomes(curves)).split("\n\n")
    assert [part.split(":")[0] for part in parts] == ["With batch=4", "With batch=8"]
    assert "Each of these 2 settings is judged by itself, at the level of 5 %" in parts[-1]
