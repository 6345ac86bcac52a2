"""The expansion against a quadratic, where second order is exact, and against finite differences on a network."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from greats_jax.analysis import curvatures, hessian_times, inner, loss_along, predicted, unit_update
from greats_jax.ghost import value_and_per_example_grads

WEIGHTS = jnp.array([[0.5, 0.5, 0, 0], [0, 0.5, 0, 0.5], [1, 0, 0, 0.0]])


def quadratic(params: Any, example: jax.Array) -> jax.Array:
    """Convex in the parameters, with a Hessian that depends on no parameter."""
    residual = example[0] * (params["a"] @ jnp.array([1.0, -2.0, 0.5])) + params["b"].sum() - example[1]
    return residual**2 + 0.3 * (params["b"] ** 2).sum()


def network(params: Any, example: tuple[jax.Array, jax.Array]) -> jax.Array:
    """A small one that is not quadratic, with an integer leaf."""
    x, y = example
    hidden = jnp.tanh(x @ params["in"])
    return ((hidden @ params["out"] - y) ** 2).sum() * params["scale"]


def quadratic_problem() -> tuple[Any, Any, Any]:
    params = {"a": jnp.array([0.3, -0.1, 0.7]), "b": jnp.array([0.2, -0.4])}
    rows = jax.random.normal(jax.random.key(0), (4, 2))
    targets = jax.random.normal(jax.random.key(1), (3, 2))
    return params, rows, lambda p: jax.vmap(quadratic, (None, 0))(p, targets).mean()


def network_problem() -> tuple[Any, Any, Any]:
    keys = jax.random.split(jax.random.key(2), 6)
    params = {
        "in": jax.random.normal(keys[0], (3, 5)) / 2,
        "out": jax.random.normal(keys[1], (5, 2)) / 2,
        "scale": jnp.array(2),
    }
    rows = jax.random.normal(keys[2], (4, 3)), jax.random.normal(keys[3], (4, 2))
    targets = jax.random.normal(keys[4], (3, 3)), jax.random.normal(keys[5], (3, 2))
    return params, rows, lambda p: jax.vmap(network, (None, 0))(p, targets).mean()


def changes(loss: Any, params: Any, grads: Any, rate: float) -> np.ndarray:
    """What gradient descent on each subset does to the loss."""
    found = []
    for weights in WEIGHTS:
        mean = grads.weighted_sum(weights)
        trained = {name: None if name == "scale" else -leaf for name, leaf in mean.items()}
        found.append(float(loss_along(loss, params, trained, rate) - loss(params)))
    return np.array(found)


@pytest.mark.parametrize("jit", [False, True])
def test_second_order_is_exact_where_the_loss_is_quadratic(jit):
    params, rows, loss = quadratic_problem()
    _, grads = value_and_per_example_grads(quadratic)(params, rows)
    slopes = grads.dot(jax.grad(loss)(params))
    curved = (jax.jit(curvatures, static_argnums=0) if jit else curvatures)(loss, params, grads)
    actual = changes(loss, params, grads, rate=0.3)
    second = predicted(slopes, curved, WEIGHTS, 0.3)
    assert np.allclose(second, actual, rtol=1e-4, atol=1e-5)
    assert not np.allclose(predicted(slopes, None, WEIGHTS, 0.3), actual, rtol=0.05)
    assert not np.allclose(predicted(slopes, grads.gram(), WEIGHTS, 0.3), actual, rtol=0.05)


def test_curvatures_are_those_of_the_whole_hessian():
    params, rows, loss = quadratic_problem()
    _, grads = value_and_per_example_grads(quadratic)(params, rows)
    flat, restore = ravel_pytree(params)
    hessian = jax.hessian(lambda x: loss(restore(x)))(flat)
    each = jax.vmap(lambda g: ravel_pytree(g)[0])(grads.materialize())
    assert np.allclose(curvatures(loss, params, grads), each @ hessian @ each.T, rtol=1e-4)


def test_the_gram_term_is_the_squared_length_of_the_mean_gradient():
    params, rows, loss = quadratic_problem()
    _, grads = value_and_per_example_grads(quadratic)(params, rows)
    slopes = grads.dot(jax.grad(loss)(params))
    added = predicted(slopes, grads.gram(), WEIGHTS, 0.1) - predicted(slopes, None, WEIGHTS, 0.1)
    for weights, term in zip(WEIGHTS, added, strict=True):
        mean = grads.weighted_sum(weights)
        assert float(term) == pytest.approx(0.1**2 / 2 * float(inner(mean, mean)), rel=1e-4)


def test_each_order_shrinks_the_error_of_a_network_as_it_should():
    with jax.enable_x64(True):
        params, rows, loss = network_problem()
        params = {name: p.astype(jnp.float64) if name != "scale" else p for name, p in params.items()}
        _, grads = value_and_per_example_grads(network)(params, rows)
        slopes = grads.dot({**jax.grad(loss, allow_int=True)(params), "scale": params["scale"]})
        curved = curvatures(loss, params, grads)
        errors = {
            order: [
                np.abs(predicted(slopes, term, WEIGHTS, rate) - changes(loss, params, grads, rate)).max()
                for rate in (0.002, 0.001)
            ]
            for order, term in {"first": None, "second": curved}.items()
        }
    # Half the rate leaves a quarter of a second-order error and an eighth of a third-order one.
    assert errors["first"][0] / errors["first"][1] == pytest.approx(4, rel=0.1)
    assert errors["second"][0] / errors["second"][1] == pytest.approx(8, rel=0.2)


def test_hessian_times_is_a_difference_of_gradients():
    params, _, loss = network_problem()
    direction = {"in": jnp.ones((3, 5)), "out": -jnp.ones((5, 2)), "scale": None}
    step = 1e-2

    def gradient(sign: int) -> dict:
        moved = {n: params[n] if d is None else params[n] + sign * step * d for n, d in direction.items()}
        return jax.grad(loss, allow_int=True)(moved)

    found = hessian_times(loss, params, direction)
    assert found["scale"] is None
    for name in ("in", "out"):
        assert np.allclose(found[name], (gradient(1)[name] - gradient(-1)[name]) / (2 * step), rtol=0.02, atol=0.02)


def test_the_unit_update_is_what_the_optimizer_does():
    params, _, loss = network_problem()
    trained = {"in": params["in"], "out": params["out"], "scale": None}
    optimizer = optax.adamw(1.0, weight_decay=0.1)
    state = optimizer.init(trained)
    gradient = {**jax.grad(loss, allow_int=True)(params), "scale": None}
    found = unit_update(optimizer, state, params, gradient)
    # AdamW's first step, by its formula: the sign of the gradient, and the decay.
    assert np.allclose(found["in"], -jnp.sign(gradient["in"]) - 0.1 * params["in"], atol=1e-3)
    assert found["scale"] is None


def test_a_step_keeps_the_dtype_of_the_parameters():
    seen = []

    def loss(params: Any) -> jax.Array:
        seen.append(params["w"].dtype)
        return params["w"].astype(jnp.float32).sum()

    params = {"w": jnp.ones(2, jnp.bfloat16)}
    assert float(loss_along(loss, params, {"w": jnp.ones(2)}, 0.5)) == 3
    assert seen == [jnp.bfloat16]
