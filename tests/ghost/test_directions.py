"""Products with a direction leaf by leaf, and a direction that passes for the gradient of an example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import convolution, decoder, mlp, normal, routing

from greats_jax.errors import ArgumentError
from greats_jax.ghost import reference, value_and_per_example_grads

FACTORS, PRODUCTS = 0.0, 1e9
CASES = [(decoder, FACTORS), (decoder, PRODUCTS), (mlp, FACTORS), (routing, FACTORS), (convolution, FACTORS)]


def close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(("network", "instantiate_below"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_directions_against_gradients_laid_out(network, instantiate_below):
    loss, params, batch = network()
    direction = jax.tree.map(lambda x: normal(x.size, *x.shape), params)
    key = jax.random.key(3)

    @jax.jit
    def contract(params, batch):
        grads = value_and_per_example_grads(loss, instantiate_below=instantiate_below)(params, batch)[1]
        first = grads.like(jax.tree.map(lambda g: g[0], grads.materialize()))
        one = grads.like(direction)
        return (
            grads.dot(direction), grads.dot_by_leaf(direction), grads.cross(one), one.gram(),
            grads.project(32, key)[:1], first.project(32, key),
        )  # fmt: skip

    dot, by_leaf, cross, gram, features, of_first = contract(params, batch)
    slow = reference.per_example_grads(loss, params, batch)
    n = len(dot)

    def part(found, g, v):
        g, v = np.asarray(g, np.float64), np.asarray(v, np.float64)
        terms = (g * v).reshape(n, found.shape[0], -1).sum(-1).T if found.ndim == 2 else (g * v).reshape(n, -1).sum(-1)
        np.testing.assert_allclose(found, terms, rtol=0, atol=1e-5 * np.abs(dot).max())

    jax.tree.map(part, by_leaf, slow, direction)
    close(sum(x.reshape(-1, n).sum(0) for x in jax.tree.leaves(by_leaf)), dot)
    close(cross[:, 0], dot)
    close(gram, np.asarray([[sum(float((v**2).sum()) for v in jax.tree.leaves(direction))]]))
    close(of_first, features)


def test_only_leaves_stacked_by_a_scan_have_layers_and_constants_have_nothing():
    def loss(params, x):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ params["first"], params["stacked"])
        return (h * params["unused"].shape[0]).sum() + 0.0 * params["count"].sum()

    params = {
        "first": normal(0, 3, 4),
        "stacked": normal(1, 2, 4, 4),
        "unused": normal(2, 5),
        "count": jnp.arange(3),
    }
    _, grads = value_and_per_example_grads(loss)(params, normal(3, 6, 2, 3))
    found = grads.dot_by_leaf(params)
    assert found["first"].shape == (6,)
    assert found["stacked"].shape == (2, 6)
    np.testing.assert_array_equal(found["unused"], np.zeros(6))
    assert found["count"] is None
    assert np.any(found["stacked"])


def test_a_direction_of_another_shape_is_refused():
    loss, params, batch = mlp()
    _, grads = value_and_per_example_grads(loss)(params, batch)
    wrong = {**params, "bias": jnp.ones(3)}
    for use in (grads.dot_by_leaf, grads.like):
        with pytest.raises(ArgumentError, match=r"the direction has shape \(3,\) at \['bias'\]"):
            use(wrong)
