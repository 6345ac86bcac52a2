"""Property: on any network, every contraction is that of vmap(grad). The networks are drawn by Hypothesis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_networks import Network, build, loss_of, networks

from greats_jax.ghost import PerExampleGrads, reference, value_and_per_example_grads

# In bfloat16 both sides see the same network, because networks this small were up to 0.3 away from themselves in
# float32; what cancels before it is rounded still cost up to 0.021 in 500 networks (float32: 5e-7).
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-2}


def floats(params: dict) -> dict:
    return {name: x for name, x in params.items() if name != "count"}


def contractions(losses, grads: PerExampleGrads, other: PerExampleGrads, direction, weights) -> dict:
    dot = grads.dot(direction)
    return {
        "losses": losses,
        "gram": grads.gram(),
        "squared_norms": grads.squared_norms(),
        "cross": grads.cross(other[: len(other) // 2 + 1]),
        "dot": dot,
        "dot_by_jvp": dot,
        "weighted_sum": floats(grads.weighted_sum(weights)),
    }


def laid_out(loss, params, frozen, batch, noise, weights, compute) -> tuple[dict, dict, dict]:
    """A direction, the same contractions by gradients laid out, and the size of the numbers in each."""
    grads = floats(reference.per_example_grads(loss, params, frozen, batch))
    gram = reference.gram(grads)
    # The first gradient and some noise: against noise alone products cancel, and little of them is left to compare.
    direction = jax.tree.map(lambda g, v: g[0] + 0.5 * jnp.sqrt(gram[0, 0]) * v, grads, floats(noise))
    pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    terms = jax.tree.map(lambda g: jnp.einsum("n,n...->n...", weights, g), grads)
    dot = sum(jnp.einsum("n...,...->n", g, v) for g, v in pairs)
    direction = params | direction
    expected = {
        "losses": jax.vmap(loss, (None, None, 0))(params, frozen, batch),
        "gram": gram,
        "squared_norms": jnp.diagonal(gram),
        "cross": gram[:, : len(gram) // 2 + 1],
        "dot": dot,
        # In bfloat16 forward mode rounds elsewhere, and that would be all there is to see.
        "dot_by_jvp": reference.dot_by_jvp(loss, direction, params, frozen, batch) if compute == "float32" else dot,
        "weighted_sum": jax.tree.map(lambda g: g.sum(0), terms),
    }
    # A sum of gradients that cancel is as exact as what is summed.
    sizes = jax.tree.map(lambda x: jnp.abs(x).max(), {**expected, "weighted_sum": terms})
    return direction, expected, sizes


def check(network: Network, compute: str) -> None:
    params, frozen, batch = build(network)
    rng = np.random.default_rng(network.seed + 1)
    draws = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
    size = np.sqrt(sum(np.sum(v**2) for v in jax.tree.leaves(draws)))
    noise = jax.tree.map(lambda v: jnp.asarray(v / size, jnp.float32), draws)
    weights = jnp.asarray(rng.uniform(0.5, 2, network.sizes.examples), jnp.float32)

    @jax.jit
    def both(params, frozen, batch):
        loss = loss_of(network, compute)
        direction, expected, sizes = laid_out(loss, params, frozen, batch, noise, weights, compute)
        losses, factors = value_and_per_example_grads(loss, instantiate_below=0.0)(params, frozen, batch)
        again, default = value_and_per_example_grads(loss)(params, frozen, batch)
        found = contractions(losses, factors, default, direction, weights)
        return (found, contractions(again, default, factors, direction, weights)), expected, sizes

    found, expected, sizes = both(params, frozen, batch)
    for ours in found:
        leaves = jax.tree_util.tree_leaves_with_path(ours)
        for (path, a), b, size in zip(leaves, jax.tree.leaves(expected), jax.tree.leaves(sizes), strict=True):
            limit = TOLERANCE[compute] * max(float(size), 1e-12)
            np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))


@settings(deadline=None, derandomize=True, max_examples=3)
@given(network=networks(), compute=st.sampled_from(["float32", "bfloat16"]))
def test_contractions_of_a_random_network_equal_materialised_gradients(network, compute):
    check(network, compute)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(network=networks(), compute=st.sampled_from(["float32", "bfloat16"]))
def test_contractions_of_many_random_networks_equal_materialised_gradients(network, compute):
    check(network, compute)
