"""Each rule against a slow, obvious NumPy version."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_signals import KEY, UDS, choose, first_memory, picked, random_signals, signals_of, slots, with_some_invalid
from slow_rules import SlowQueue, allowed_in, slow_layer_wise, slow_picks, slow_scores

from greats_jax.errors import ArgumentError
from greats_jax.selection import Rule, Signals, get, names, register, top_k

RANKING = (
    "regular", "max_loss", "grad_norm", "greats_first_order", "greats", "greats_adam", "cosine", "rho_loss", "sbert",
)  # fmt: skip


@pytest.mark.parametrize("name", RANKING)
@pytest.mark.parametrize("k", [1, 3, 7])
def test_a_rule_picks_what_the_obvious_version_picks(name, k):
    for seed in range(12):
        signals = with_some_invalid(random_signals(seed), seed)
        for rate in (0.0, 0.05, 2.0) if name == "greats" else (0.1,):
            found = choose(name, signals, k, rate)
            expected = slow_picks(name, signals, k, rate)
            assert picked(found) == expected
            assert found.indices.tolist() == expected + [0] * (k - len(expected)), "empty slots have index 0"
            assert found.weights.tolist() == [1.0] * len(expected) + [0.0] * (k - len(expected))
            if name != "regular":
                np.testing.assert_allclose(found.scores, slow_scores(name, signals), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_layer_wise_picks_in_every_layer_what_the_obvious_version_picks(k):
    for seed in range(12):
        signals = with_some_invalid(random_signals(seed), seed)
        found = choose("layer_wise", signals, k)
        assert found["bias"].indices.shape == (k,)
        assert found["stacked"].indices.shape == found["stacked"].weights.shape == (2, k)
        rows = [picked(found["bias"])]
        rows += [picked(jax.tree.map(lambda x, layer=layer: x[layer], found["stacked"])) for layer in range(2)]
        assert rows == slow_layer_wise(signals, k)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_uds_keeps_the_queue_of_the_obvious_version_over_many_steps(k):
    # 5 places: one pick a step turns the queue round slowly, 7 picks overflow it in one step.
    memory, slow = None, SlowQueue(5)
    for step in range(14):
        signals = with_some_invalid(random_signals(step), step)._replace(memory=memory)
        found = choose(UDS, signals, k)
        scores = slow.scores(signals)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
        expected = sorted(allowed_in(signals), key=lambda i: -scores[i])[:k]
        assert picked(found) == expected
        slow.push(signals, expected)
        memory = found.memory
        full = np.asarray(memory["rows"])[: int(memory["pushed"])]
        assert sorted(full[:, 0].tolist()) == sorted(float(np.float32(row[0])) for row in slow.rows)


def test_uds_weighs_distance_by_alpha():
    rows = np.asarray([[0.0, 0.0], [3.0, 4.0]])
    signals = signals_of(losses=np.ones(2), logit_summaries={"nuclear": np.asarray([2.0, 0.0]), "projection": rows})
    near, far = (f"uds(alpha={alpha}, size=3, width=2)" for alpha in (0.1, 1.0))
    first = choose(near, signals, 1)
    assert picked(first) == [0], "an empty queue is at no distance"
    signals = signals._replace(memory=first.memory)
    assert picked(choose(near, signals, 1)) == [0]
    assert picked(choose(far, signals, 1)) == [1], "5 away from what was chosen"


def test_uds_finds_small_distances_between_long_rows():
    far = np.full((1, 4), 1000.0)
    rows = np.concatenate([far, far + 1.0])
    signals = signals_of(losses=np.ones(2), logit_summaries={"nuclear": np.zeros(2), "projection": rows})
    signals = signals._replace(memory={"rows": far, "pushed": np.ones((), np.int32)})
    np.testing.assert_allclose(choose("uds(size=1, width=4)", signals, 1).scores, [0.0, 2.0], atol=1e-2)


def plackett_luce(logits: np.ndarray, k: int) -> dict[tuple[int, ...], float]:
    """The probability of every ordered draw of k without replacement."""
    chances = {(): 1.0}
    for _ in range(k):
        grown = {}
        for drawn, chance in chances.items():
            left = [i for i in range(len(logits)) if i not in drawn]
            total = sum(np.exp(logits[i]) for i in left)
            grown.update({(*drawn, i): chance * np.exp(logits[i]) / total for i in left})
        chances = grown
    return chances


@pytest.mark.parametrize("name", ["opus(temperature=0.9)", "opus(temperature=2.5)", "sampled(max_loss)", "random_k"])
def test_draws_are_as_frequent_as_their_probabilities(name):
    values, draws = np.array([0.3, -1.2, 2.0, 9.9, 0.5]), 6000
    signals = signals_of(
        preconditioned_alignment=np.asarray(1e-9 * values),
        losses=np.asarray(values),
        valid=np.asarray([1, 1, 1, 0, 1], bool),
    )
    rule = get(name)
    draw = jax.jit(jax.vmap(lambda key: rule(signals, 2, learning_rate=None, key=key).indices))
    found = np.asarray(draw(jax.random.split(KEY, draws)))
    allowed = [0, 1, 2, 4]
    scale = {"opus(temperature=0.9)": 0.9, "opus(temperature=2.5)": 2.5, "sampled(max_loss)": 1.0, "random_k": np.inf}
    level = (values[allowed] - values[allowed].mean()) / values[allowed].std() / scale[name]
    for (first, second), chance in plackett_luce(level, 2).items():
        seen = np.mean((found == [allowed[first], allowed[second]]).all(1))
        # Five standard deviations of the frequency of a true probability.
        assert abs(seen - chance) < 5 * np.sqrt(chance * (1 - chance) / draws), (first, second, seen, chance)
    assert not (found == 3).any()


@pytest.mark.parametrize("name", ["random_k", "opus"])
@pytest.mark.parametrize("k", [1, 3, 7])
def test_random_rules_draw_different_candidates_that_are_allowed(name, k):
    drawn = set()
    for seed in range(12):
        signals = with_some_invalid(random_signals(seed), seed)
        key = jax.random.key(seed)
        found = choose(name, signals, k, key=key)
        allowed = allowed_in(signals)
        assert len(picked(found)) == len(set(picked(found))) == min(k, len(allowed))
        assert set(picked(found)) <= set(allowed)
        np.testing.assert_array_equal(found.indices, choose(name, signals, k, key=key).indices)
        drawn.add(tuple(picked(found)))
    assert len(drawn) > 1


def test_opus_does_not_depend_on_the_scale_of_the_gradients():
    signals = random_signals(0)
    tiny = signals._replace(preconditioned_alignment=1e-25 * np.asarray(signals.preconditioned_alignment))
    for seed in range(8):
        key = jax.random.key(seed)
        assert picked(choose("opus", tiny, 3, key=key)) == picked(choose("opus", signals, 3, key=key))


def test_a_cold_opus_is_greats_adam():
    signals = random_signals(0)
    assert picked(choose("opus(temperature=1e-6)", signals, 3)) == picked(choose("greats_adam", signals, 3))


def test_overlap_makes_greats_avoid_a_duplicate():
    gradients = np.asarray([[2.0, 0.0], [2.0, 0.0], [0.0, 1.5]])
    signals = signals_of(alignment=gradients.sum(1), gram=gradients @ gradients.T)
    assert picked(choose("greats", signals, 2, rate=1.0)) == [0, 2]
    assert picked(choose("greats_first_order", signals, 2)) == [0, 1]


def test_without_a_learning_rate_in_warm_up_greats_is_the_first_order_rule():
    signals = random_signals(3)
    assert picked(choose("greats", signals, 3, rate=0.0)) == picked(choose("greats_first_order", signals, 3))


def test_cosine_forgets_the_length_of_a_gradient():
    gradients = np.asarray([[1.0, 1.0], [100.0, 1.0], [0.0, 0.0], [1e-3, 0.0]])
    signals = signals_of(alignment=gradients @ np.asarray([1.0, 1.0]), squared_norms=(gradients**2).sum(1))
    found = choose("cosine", signals, 4)
    np.testing.assert_allclose(found.scores, [2**0.5, 101 / 10001**0.5, 0.0, 1.0], rtol=1e-6)
    assert picked(found) == [0, 1, 3, 2]


def test_every_rule_of_the_contract_is_there_and_declares_signals():
    expected = {
        "regular", "random_k", "max_loss", "grad_norm", "greats", "greats_first_order", "greats_adam", "rho_loss",
        "sbert", "opus", "layer_wise", "uds", "partition_sel", "cosine",
    }  # fmt: skip
    assert expected <= set(names())
    for name in expected:
        assert get(name).name == name
        assert get(name).needs <= set(Signals._fields)


@pytest.mark.parametrize("name", [*RANKING, "opus", "random_k", "layer_wise", "partition_sel", UDS])
def test_a_rule_reads_only_the_signals_that_it_declares(name):
    signals = random_signals(0)
    rule = get(name)
    declared = rule.needs | {"valid"}
    bare = Signals(**{field: value for field, value in signals._asdict().items() if field in declared})
    if rule.init is not None:
        bare = bare._replace(memory=rule.init())
    for found in slots(jax.eval_shape(lambda s: rule(s, 3, learning_rate=0.1, key=KEY), bare)):
        assert found.indices.shape[-1] == 3
    for needed in sorted(rule.needs - {"losses", "memory", "sources"}):
        with pytest.raises(ArgumentError, match=f"needs the signal '{needed}'"):
            jax.eval_shape(lambda s: rule(s, 3, learning_rate=0.1, key=KEY), bare._replace(**{needed: None}))


@pytest.mark.parametrize("name", ["greats", "partition_sel(budgets=(2, 1))", UDS])
def test_rules_take_numpy_arrays_outside_of_jit(name):
    signals = random_signals(0)._replace(memory=first_memory(name))
    assert isinstance(signals.gram, np.ndarray)
    assert picked(get(name)(signals, 3, learning_rate=0.1)) == picked(choose(name, signals, 3))


def test_a_new_rule_is_one_function():
    @register("shortest_test_rule", needs={"losses"})
    def lowest_loss(signals, k, *, learning_rate, key):
        return top_k(-signals.losses, k, jnp.isfinite(signals.losses))

    assert isinstance(lowest_loss, Rule)
    assert "shortest_test_rule" in names()
    assert picked(choose("shortest_test_rule", signals_of(losses=np.asarray([3.0, 1.0, 2.0])), 2)) == [1, 2]


def test_mistakes_are_named():
    ones = signals_of(losses=np.ones(3), alignment=np.ones(3), preconditioned_alignment=np.ones(3))
    with pytest.raises(ArgumentError, match="did you mean 'greats'"):
        get("great")
    with pytest.raises(ArgumentError, match=r"unknown signals.*'gradients'"):
        register("x", needs={"gradients"})
    with pytest.raises(ArgumentError, match="letters, digits"):
        register("my-rule", needs=())
    with pytest.raises(ArgumentError, match="learning_rate"):
        get("greats")(ones._replace(gram=np.eye(3)), 1)
    for name in ("random_k", "opus", "sampled(max_loss)"):
        with pytest.raises(ArgumentError, match="key="):
            get(name)(ones, 1)
    with pytest.raises(ArgumentError, match="above 0; greats_adam"):
        get("opus", temperature=0)(ones, 1, key=KEY)
    with pytest.raises(ArgumentError, match="at least one row"):
        get("uds", size=0)(ones, 1)
    with pytest.raises(ArgumentError, match="all empty"):
        get("regular")(Signals(), 1)
