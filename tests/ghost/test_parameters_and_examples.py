"""What parameters and examples may be: trees of any shape and dtype, weights, keys, masks, other arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import close, explained_after_checking, factored, materialised
from flax import nnx
from networks import mlp, normal, tokens

from greats_jax.ghost import reference, value_and_per_example_grads

N, T, D = 4, 5, 6


def test_examples_may_be_trees_of_many_arrays():
    params = {"table": normal(0, 9, D), "image": normal(1, 2, 3, D), "mix": (normal(2, D, D), [normal(3, D)])}
    batch = {
        "ids": tokens(4, N, T, below=9),
        "mask": tokens(5, N, T, below=2).astype(bool).at[:, 0].set(True),
        "views": (normal(6, N, T, 2, 3), {"scale": normal(7, N)}),
        "weight": jnp.asarray([0.5, 2.0, 0.0, 1.0]),
        "key": jax.random.split(jax.random.key(0), N),
        "old_key": jax.random.split(jax.random.PRNGKey(1), N),
    }

    def loss(params, example):
        view, more = example["views"]
        h = params["table"][example["ids"]] + jnp.einsum("tab,abd->td", view, params["image"]) * more["scale"]
        h = h * jax.random.bernoulli(example["key"], 0.7, h.shape) + jax.random.normal(example["old_key"], (D,))
        matrix, (bias,) = params["mix"]
        losses = jnp.sum(jnp.tanh(h @ matrix + bias) ** 2, -1)
        return example["weight"] * jnp.mean(losses, where=example["mask"])

    explanation = explained_after_checking(loss, params, batch)
    assert materialised(explanation) == {}
    assert factored(explanation) == {"['table']", "['image']", "['mix'][0]"}
    losses, grads = value_and_per_example_grads(loss)(params, batch)
    assert losses[2] == grads.squared_norms()[2] == 0


def test_learned_positions_are_factored_where_they_are_looked_up_and_materialised_where_they_are_sliced():
    params = {"looked_up": normal(0, 9, D), "sliced": normal(1, 9, D), "all": normal(2, T, D), "w": normal(3, D, D)}

    def loss(params, x):
        positions = params["looked_up"][jnp.arange(T)] + params["sliced"][:T] + params["all"]
        return jnp.mean(jnp.tanh((x + positions) @ params["w"]) ** 2)

    explanation = explained_after_checking(loss, params, normal(4, N, T, D, scale=1))
    assert materialised(explanation) == {"['sliced']": "pad"}
    assert factored(explanation) >= {"['looked_up']", "['w']"}


def test_integer_and_boolean_leaves_are_constants_for_the_reference_too():
    params = {
        "w": normal(0, D, D),
        "heads": jnp.asarray([1, 0, 1]),
        "used": jnp.asarray(True),
        "scalar": jnp.asarray(0.5),
        "state": {"step": np.int32(3), "rows": tokens(1, 2, below=D)},
    }

    def loss(params, x):
        h = jnp.where(params["used"], x @ params["w"], x) * params["scalar"]
        return jnp.mean(h[:, params["state"]["rows"]] ** 2) * params["heads"].sum() + params["state"]["step"]

    batch = normal(2, N, T, D, scale=1)
    explanation = explained_after_checking(loss, params, batch)
    constants = {"['heads']", "['used']", "['state']['step']", "['state']['rows']"}
    assert {row.path for row in explanation if row.kind == "constant"} == constants
    slow = reference.per_example_grads(loss, params, batch)
    for name in ("heads", "used"):
        assert slow[name].dtype == params[name].dtype
        np.testing.assert_array_equal(slow[name], np.zeros((N, *params[name].shape)))


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_bfloat16_computation_is_near_float32(stored):
    def loss(params, example, dtype=jnp.bfloat16):
        x, y = example
        h = jnp.tanh(x.astype(dtype) @ params["first"].astype(dtype) + params["bias"].astype(dtype))
        return jnp.mean((h @ params["second"].astype(dtype) - y.astype(dtype)).astype(jnp.float32) ** 2)

    _, params, batch = mlp(n=N)
    _, exact = value_and_per_example_grads(lambda p, z: loss(p, z, jnp.float32))(params, batch)
    losses, grads = value_and_per_example_grads(loss, instantiate_below=0.0)(
        jax.tree.map(lambda x: x.astype(stored), params), batch
    )
    assert losses.dtype == jnp.float32
    assert materialised(grads.explain()) == {}
    assert {x.dtype for x in grads.operands} <= {jnp.dtype("bfloat16"), jnp.dtype("float32")}
    # A factor stays in the dtype of the computation; what is contracted from it is summed in float32.
    ours, theirs = (
        (g.gram(), g.squared_norms(), g.dot(params), g.weighted_sum(jnp.ones(N), "float32")) for g in (grads, exact)
    )
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-2 * float(jnp.abs(expected).max()))


def test_weights_of_examples_scale_their_gradients():
    loss, params, batch = mlp(n=N)
    weights = jnp.asarray([1.0, 0.0, 2.0, -0.5])
    _, plain = value_and_per_example_grads(loss)(params, batch)
    _, weighted = value_and_per_example_grads(lambda p, z: z[1] * loss(p, z[0]))(params, (batch, weights))
    close(weighted.gram(), weights[:, None] * plain.gram() * weights)
    close(weighted.weighted_sum(jnp.ones(N)), plain.weighted_sum(weights))


# ---- what cannot be: statistics of a batch ---------------------------------------------------------------------------


def normalised_loss(graph, axis_name=None):
    def loss(params, statistics, example):
        model = nnx.merge(graph, params, statistics, copy=True)
        model.norm.axis_name = axis_name
        return jnp.mean((model.head(model.norm(example)) - 1) ** 2)

    return loss


class Normalised(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(D, rngs=rngs)
        self.head = nnx.Linear(D, 2, rngs=rngs)


def test_batch_normalisation_in_training_sees_one_example():
    graph, params, statistics = nnx.split(Normalised(nnx.Rngs(0)), nnx.Param, ...)
    batch = normal(0, N, T, D, scale=1)
    loss = normalised_loss(graph)
    explained_after_checking(loss, params, statistics, batch)
    losses, _ = value_and_per_example_grads(loss)(params, statistics, batch)
    alone = [value_and_per_example_grads(loss)(params, statistics, batch[i : i + 1])[0][0] for i in range(2)]
    np.testing.assert_allclose(losses[:2], alone, rtol=1e-5)  # means and variances are over an example's own rows


def test_statistics_over_the_batch_axis_have_no_axis_to_be_taken_over():
    graph, params, statistics = nnx.split(Normalised(nnx.Rngs(0)), nnx.Param, ...)
    with pytest.raises(NameError, match="batch"):
        value_and_per_example_grads(normalised_loss(graph, "batch"))(params, statistics, normal(0, N, T, D))


def test_batch_normalisation_with_stored_statistics_is_exact():
    model = Normalised(nnx.Rngs(0))
    model.norm.mean[...], model.norm.var[...] = normal(1, D), 1 + normal(2, D) ** 2
    model.eval()
    graph, params, statistics = nnx.split(model, nnx.Param, ...)
    explanation = explained_after_checking(normalised_loss(graph), params, statistics, normal(0, N, T, D, scale=1))
    assert materialised(explanation) == {}
