"""Rules applied to groups of candidates apart from each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from greats_jax.errors import ArgumentError
from greats_jax.selection import Signals, get, in_groups

RNG = np.random.default_rng(0)
G = RNG.normal(size=(12, 5)).astype(np.float32)
LOSSES, ALIGNMENT, GRAM = jnp.asarray(RNG.uniform(1, 2, 12), jnp.float32), jnp.asarray(G @ G[0]), jnp.asarray(G @ G.T)
SIGNALS = Signals(losses=LOSSES, alignment=ALIGNMENT, gram=GRAM)


def part(group: int, size: int) -> Signals:
    own = slice(group * size, (group + 1) * size)
    return Signals(LOSSES[own], ALIGNMENT[own], GRAM[own, own])


@pytest.mark.parametrize("rule", ["greats", "max_loss", "0.5*normalised(greats) + 0.5*max_loss", "soft(greats)"])
def test_each_group_picks_what_it_would_alone(rule):
    found = in_groups(get(rule), 3)(SIGNALS, 6, learning_rate=0.1)
    for group in range(3):
        alone = get(rule)(part(group, 4), 2, learning_rate=0.1)
        np.testing.assert_array_equal(found.indices[2 * group : 2 * group + 2], alone.indices + 4 * group)
        np.testing.assert_allclose(found.weights[2 * group : 2 * group + 2], alone.weights, rtol=1e-6)
        np.testing.assert_allclose(found.scores[4 * group : 4 * group + 4], alone.scores, rtol=1e-5)


def test_blocks_of_the_gram_matrix_are_enough():
    blocks = jnp.stack([GRAM[i : i + 4, i : i + 4] for i in (0, 4, 8)])
    whole = in_groups(get("greats"), 3)(SIGNALS, 6, learning_rate=0.1)
    cut = in_groups(get("greats"), 3)(SIGNALS._replace(gram=blocks), 6, learning_rate=0.1)
    np.testing.assert_array_equal(whole.indices, cut.indices)


def test_an_empty_slot_has_index_and_weight_0():
    valid = jnp.ones(12, bool).at[jnp.arange(5, 8)].set(False)
    found = in_groups(get("max_loss"), 3)(SIGNALS._replace(valid=valid), 6)
    assert found.indices[3] == 0
    assert found.weights[3] == 0
    assert found.indices[2] == 4


def test_groups_draw_apart_from_each_other():
    found = in_groups(get("random_k"), 4)(Signals(valid=jnp.ones(32, bool)), 16, key=jax.random.key(0))
    picks = np.asarray(found.indices).reshape(4, 4) - 8 * np.arange(4)[:, None]
    assert ((picks >= 0) & (picks < 8)).all()
    assert len({tuple(sorted(row)) for row in picks.tolist()}) > 1


def test_each_group_has_a_memory_of_its_own():
    rule = in_groups(get("uds", size=4, width=2), 2)
    assert rule.init is not None
    memory = rule.init()
    assert {x.shape[0] for x in jax.tree.leaves(memory)} == {2}


def test_one_group_is_the_rule_itself():
    rule = get("greats")
    assert in_groups(rule, 1) is rule


def test_groups_that_cannot_be_equal_are_refused():
    with pytest.raises(ArgumentError, match="5 of 12 candidates cannot be chosen in 3 equal groups"):
        in_groups(get("max_loss"), 3)(SIGNALS, 5)


def test_a_rule_that_chooses_for_every_parameter_is_refused():
    with pytest.raises(ArgumentError, match="all candidates in one group"):
        in_groups(get("layer_wise"), 2)
