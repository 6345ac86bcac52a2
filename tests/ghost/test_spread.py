"""Contractions of gradients whose examples are spread over eight simulated devices."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from greats_jax.errors import ArgumentError
from greats_jax.ghost import Spread, contractions, exchange, value_and_per_example_grads

N, T, WIDTH, OUT, LAYERS = 16, 6, 24, 32, 3


def loss(params, row):
    h, _ = jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), params["table"][row["ids"]], params["layers"])
    return jnp.mean((h @ params["head"] + params["bias"] - row["y"]) ** 2)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMS = {
    "table": normal(0, 40, WIDTH), "layers": 0.3 * normal(1, LAYERS, WIDTH, WIDTH), "head": normal(2, WIDTH, OUT),
    "bias": normal(3, OUT),
}  # fmt: skip
ROWS = {"ids": jnp.asarray(np.random.default_rng(4).integers(0, 40, (N, T)), jnp.int32), "y": normal(5, N, T, OUT)}
MESH = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
SPREAD = Spread(MESH, ("data",))
TRANSFORM = value_and_per_example_grads(loss, instantiate_below=0)


def spread_rows():
    return jax.device_put(ROWS, NamedSharding(MESH, PartitionSpec("data")))


def on_one_device(contract):
    return contract(TRANSFORM(PARAMS, ROWS)[1])


def on_eight(contract):
    everywhere = NamedSharding(MESH, PartitionSpec())
    run = jax.jit(lambda params, rows: contract(TRANSFORM(params, rows)[1].over(SPREAD)))
    return run(jax.device_put(PARAMS, everywhere), spread_rows())


def assert_close(found, expected):
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(np.asarray(found) / scale, np.asarray(expected) / scale, atol=5e-6)


CONTRACTIONS = {
    "gram": lambda g: g.gram(),
    "blocks": lambda g: g.gram_blocks(8),
    "norms": lambda g: g.squared_norms(),
    "dot": lambda g: g.dot(PARAMS),
    "gram and dot": lambda g: jnp.concatenate([x.ravel() for x in g.gram_and_dot(PARAMS)]),
    "align": lambda g: g.split(8, 8)[0].align(g.split(8, 8)[1], jnp.ones(8)),
    "both": lambda g: jnp.concatenate(
        [x.ravel() for x in g.split(8, 8)[0].gram_and_alignment(g.split(8, 8)[1], jnp.ones(8))]
    ),
    "features": lambda g: g.project(64, jax.random.key(0)),
    "sum": lambda g: g.weighted_sum(jnp.arange(N, dtype=jnp.float32))["layers"],
}


# What others contain, or what nothing is exchanged for, is left for the slow run.
LEFT = ("norms", "dot", "gram and dot", "features")


@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow) if x in LEFT else x for x in CONTRACTIONS])
def test_what_is_spread_contracts_to_the_same(name):
    assert_close(on_eight(CONTRACTIONS[name]), on_one_device(CONTRACTIONS[name]))


@pytest.mark.parametrize("limit", [pytest.param(2**24, marks=pytest.mark.slow), 2**12])
@pytest.mark.parametrize("way", ["factors", "products", "slices of factors"])
def test_every_way_of_exchanging_gives_the_same_gram(way, limit):
    plans = contractions.gram_plan

    def plan(leaf):
        return ("ghost" if way == "factors" else "instantiate"), plans(leaf)[1]

    dearer = "_of_slicing" if way == "products" else "_of_turning"
    with (
        mock.patch.object(contractions, "gram_plan", plan),
        mock.patch.object(exchange, dearer, return_value=float("inf")),
        mock.patch.object(contractions, "INSTANCE_LIMIT", limit),
    ):
        found = on_eight(lambda g: g.only(lambda path: "layers" in path or "head" in path).gram())
    assert_close(found, on_one_device(lambda g: g.only(lambda path: "layers" in path or "head" in path).gram()))


def test_the_gram_is_on_every_device():
    assert on_eight(CONTRACTIONS["gram"]).sharding.is_fully_replicated


def test_small_products_are_sent_and_long_examples_are_not_gathered():
    """64 examples of 512 tokens: an adapter's products are far smaller than its activations."""
    shapes = ((64, 512, 256), (64, 512, 8))
    grads = jax.eval_shape(
        lambda w, a, d: value_and_per_example_grads(lambda w, r: jnp.sum((r[0] @ w) * r[1]), instantiate_below=0)(
            w, (a, d)
        )[1],
        jnp.zeros((256, 8)),
        *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes),
    )
    leaf = grads._factored()[0]._replace(spread=SPREAD)
    assert contractions.gram_plan(leaf)[0] == "instantiate"
    assert exchange.received_for_products(leaf, []) < exchange.received_for_pairs(leaf) / 20


def test_blocks_are_those_of_the_whole_gram():
    gram, blocks = on_one_device(CONTRACTIONS["gram"]), on_one_device(lambda g: g.gram_blocks(4))
    for i in range(4):
        assert_close(blocks[i], gram[4 * i : 4 * i + 4, 4 * i : 4 * i + 4])


def test_groups_of_unequal_size_are_refused():
    with pytest.raises(ArgumentError, match="5 equal groups"):
        on_one_device(lambda g: g.gram_blocks(5))
