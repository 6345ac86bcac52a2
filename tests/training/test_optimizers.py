import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from greats_jax.training.config import OptimizerConfig
from greats_jax.training.optimizers import build_optimizer, build_schedule, decayed, warmup_steps


def rate(schedule: optax.Schedule, step: int) -> float:
    return float(np.asarray(schedule(step)))


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def published_linear(step: int, steps: int, warmup: int, peak: float) -> float:
    """The linear schedule of transformers, which the published runs used."""
    if step < warmup:
        return peak * step / max(1, warmup)
    return peak * max(0.0, (steps - step) / max(1, steps - warmup))


@pytest.mark.parametrize(
    ("steps", "warmup", "length"), [(100, 0.03, 3), (30, 0.1, 3), (10, 0.0, 0), (10, 4.0, 4), (3, 9.0, 3)]
)
def test_linear_schedule_is_the_published_one(steps, warmup, length):
    config = OptimizerConfig(learning_rate=2e-5, warmup=warmup)
    assert warmup_steps(config, steps) == length
    schedule = build_schedule(config, steps)
    for step in range(steps):
        expected = published_linear(step, steps, length, 2e-5)
        np.testing.assert_allclose(rate(schedule, step), expected, rtol=1e-6, atol=1e-12)


def test_cosine_and_constant_schedules():
    cosine = build_schedule(OptimizerConfig(learning_rate=1.0, schedule="cosine", warmup=10.0), 110)
    assert rate(cosine, 5) == pytest.approx(0.5)
    assert rate(cosine, 10) == pytest.approx(1.0)
    assert rate(cosine, 60) == pytest.approx(0.5)
    assert rate(cosine, 110) == pytest.approx(0.0, abs=1e-7)
    constant = build_schedule(OptimizerConfig(learning_rate=0.3, schedule="constant", warmup=2.0), 10)
    np.testing.assert_allclose([rate(constant, step) for step in (0, 1, 2, 9)], [0.0, 0.15, 0.3, 0.3], rtol=1e-6)


def test_adamw_is_optax_adamw_after_clipping():
    config = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup=0.0, weight_decay=0.01, clip=1.0)
    ours = build_optimizer(config, build_schedule(config, 10), accumulate=1)
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.01))
    params = {"kernel": jnp.array([1.0, -2.0])}
    one, two = ours.init(params), theirs.init(params)
    for seed in range(3):
        grads = {"kernel": jax.random.normal(jax.random.key(seed), (2,)) * 5}
        first, one = ours.update(grads, one, params)
        second, two = theirs.update(grads, two, params)
        np.testing.assert_allclose(flat(first), flat(second), rtol=1e-6)


def test_sgd_with_and_without_momentum():
    params, grads = {"w": jnp.ones(2)}, {"w": jnp.array([0.5, -1.0])}
    for momentum, second_step in ((0.0, 1.0), (0.9, 1.9)):
        config = OptimizerConfig(
            name="sgd", learning_rate=0.1, schedule="constant", warmup=0.0, clip=None, momentum=momentum
        )
        optimizer = build_optimizer(config, build_schedule(config, 5), accumulate=1)
        state = optimizer.init(params)
        _, state = optimizer.update(grads, state, params)
        updates, state = optimizer.update(grads, state, params)
        np.testing.assert_allclose(flat(updates), -0.1 * second_step * flat(grads), rtol=1e-6)


def test_accumulation_updates_with_the_mean_and_counts_updates():
    config = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="linear", warmup=0.0, clip=None)
    optimizer = build_optimizer(config, build_schedule(config, 2), accumulate=2)
    params = {"w": jnp.zeros(1)}
    state = optimizer.init(params)
    moves = []
    for value in (1.0, 3.0, 1.0, 1.0):
        updates, state = optimizer.update({"w": jnp.array([value])}, state, params)
        moves.append(flat(updates).item())
    # The second update has half the rate: the schedule counts updates, not calls.
    np.testing.assert_allclose(moves, [0.0, -2.0, 0.0, -0.5])


def test_weight_decay_spares_biases_and_norms():
    params = {
        "layers": {"input_norm": {"scale": jnp.ones(1)}, "q_proj": {"kernel": jnp.ones(1), "bias": jnp.ones(1)}},
        "ln_f": {"scale": jnp.ones(1)},
        "embed": {"embedding": jnp.ones(1)},
    }
    assert decayed(params) == {
        "layers": {"input_norm": {"scale": False}, "q_proj": {"kernel": True, "bias": False}},
        "ln_f": {"scale": False},
        "embed": {"embedding": True},
    }
