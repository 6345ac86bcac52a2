"""The optimizer's response against the formulas of AdamW and others, written out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from greats_jax.training.preconditioning import precondition

RNG = np.random.default_rng(0)
PARAMS: Any = {
    "w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32),
    "b": jnp.asarray(RNG.normal(size=3), jnp.float32),
}
DIRECTION: Any = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), PARAMS)


def trained(optimizer: optax.GradientTransformation, steps: int = 5) -> Any:
    state = optimizer.init(PARAMS)
    for _ in range(steps):
        grads = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape), jnp.float32), PARAMS)
        _, state = optimizer.update(grads, state, PARAMS)
    return state


def test_adamw_gives_its_diagonal():
    optimizer = optax.adamw(1e-2, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1)
    state = trained(optimizer)
    moments = state[0]
    step = int(moments.count) + 1
    found: Any = precondition(optimizer, state, PARAMS, DIRECTION)
    for name in PARAMS:
        nu = np.asarray(moments.nu[name], np.float64) * 0.95 / (1 - 0.95**step)
        diagonal = (1 - 0.8) / (1 - 0.8**step) / (np.sqrt(nu) + 1e-6)
        np.testing.assert_allclose(found[name], 1e-2 * diagonal * np.asarray(DIRECTION[name]), rtol=1e-4)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.sgd(0.1, momentum=0.9)], ids=["plain", "momentum"])
def test_gradient_descent_gives_the_direction_times_the_rate(optimizer):
    found: Any = precondition(optimizer, trained(optimizer), PARAMS, DIRECTION)
    jax.tree.map(lambda x, v: np.testing.assert_allclose(x, 0.1 * v, rtol=1e-6), found, DIRECTION)


def test_clipping_does_not_make_it_nan():
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    found: Any = precondition(optimizer, optimizer.init(PARAMS), PARAMS, DIRECTION)
    cosine: Any = optax.tree.vdot(found, DIRECTION) / optax.tree.norm(found) / optax.tree.norm(DIRECTION)
    assert float(cosine) == pytest.approx(1, abs=1e-6)


def test_an_entry_without_history_moves_as_far_as_the_update_would():
    optimizer = optax.adam(1e-2)
    state = optimizer.init(PARAMS)
    for _ in range(5):
        grads = jax.tree.map(lambda x: jnp.ones_like(x).at[..., 0].set(0.0), PARAMS)
        _, state = optimizer.update(grads, state, PARAMS)
    found: Any = precondition(optimizer, state, PARAMS, DIRECTION)
    update: Any = optimizer.update(DIRECTION, state, PARAMS)[0]
    np.testing.assert_allclose(found["w"][:, 0], -update["w"][:, 0], rtol=1e-5)
    assert np.abs(found["w"][:, 0]).max() < 1, "divided by eps it would be about 1e6"


def test_muon_responds_along_the_direction_from_its_first_step_on():
    optimizer = optax.contrib.muon(1e-2)
    for state in optimizer.init(PARAMS), trained(optimizer):
        found: Any = precondition(optimizer, state, PARAMS, DIRECTION)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
        along: Any = optax.tree.vdot(found, DIRECTION)
        assert along > 0


def test_a_rate_of_zero_leaves_the_plain_direction():
    optimizer = optax.adam(optax.linear_schedule(0.0, 1.0, 10))
    found: Any = precondition(optimizer, optimizer.init(PARAMS), PARAMS, DIRECTION)
    jax.tree.map(np.testing.assert_array_equal, found, DIRECTION)
