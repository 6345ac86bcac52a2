"""Every contraction against vmap(grad), for factors, for products, and with slicing forced by a small memory limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, decoder, mlp, normal, routing

from greats_jax.errors import ArgumentError
from greats_jax.ghost import contractions, einsum, reference, value_and_per_example_grads


def close(found, expected, tolerance=1e-5):
    """Equal up to `tolerance` of each leaf's largest entry."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(float(jnp.abs(b).max()), 1e-12))


def scaled(grads, weights):
    return jax.tree.map(lambda g: jnp.tensordot(weights, g, 1), grads)


FACTORS, DEFAULT, PRODUCTS = 0.0, 0.5, 1e9
CASES = [(network, FACTORS) for network in NETWORKS] + [(decoder, DEFAULT), (decoder, PRODUCTS), (routing, PRODUCTS)]


@pytest.mark.parametrize(("network", "instantiate_below"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_all_contractions_equal_materialised_gradients(network, instantiate_below):
    loss, params, batch = network()
    weights = jnp.asarray([0.3, 0.0, -1.0, 2.0])
    direction = jax.tree.map(lambda x: normal(x.size, *x.shape), params)
    slow = reference.per_example_grads(loss, params, batch)
    gram = reference.gram(slow)

    @jax.jit
    def contract(params, batch):
        losses, grads = value_and_per_example_grads(loss, instantiate_below=instantiate_below)(params, batch)
        return (
            losses,
            grads.gram(),
            grads.squared_norms(),
            grads.dot(direction),
            grads.cross(grads[:3]),
            grads.align(grads[:3], weights[:3]),
            grads.weighted_sum(weights),
            grads[jnp.asarray([3, 1])].materialize(),
        )

    expected = (
        jax.vmap(loss, (None, 0))(params, batch),
        gram,
        jnp.diagonal(gram),
        sum(jnp.einsum("n...,...->n", g, v) for g, v in zip(*map(jax.tree.leaves, (slow, direction)), strict=True)),
        gram[:, :3],
        gram[:, :3] @ weights[:3],
        scaled(slow, weights),
        jax.tree.map(lambda g: g[jnp.asarray([3, 1])], slow),
    )
    close(contract(params, batch), expected)


def test_results_do_not_depend_on_the_memory_limit(monkeypatch):
    loss, params, batch = decoder()
    _, grads = value_and_per_example_grads(loss, instantiate_below=FACTORS)(params, batch)

    def contract(grads, params):
        ones = jnp.ones(4)
        return grads.gram(), grads.squared_norms(), grads.cross(grads[:2]), grads.weighted_sum(ones), grads.dot(params)

    before = jax.jit(contract)(grads, params)
    monkeypatch.setattr(einsum, "INTERMEDIATE_LIMIT", 1000)
    monkeypatch.setattr(contractions, "INSTANCE_LIMIT", 300)
    monkeypatch.setattr(contractions, "_ON_ACCELERATORS", 1)
    einsum.plan_contraction.cache_clear()
    try:
        after = jax.jit(lambda g, p: contract(g, p))(grads, params)
        assert any("slices" in row.contraction for row in grads.explain())
    finally:
        einsum.plan_contraction.cache_clear()
    close(after, before)


def test_products_that_the_cpu_cannot_run_in_bfloat16_are_run():
    x, y = (normal(0, 4, 3, 5).astype(jnp.bfloat16), normal(1, 4, 3).astype(jnp.bfloat16))

    @jax.jit
    def contract(x, y):
        tensors = [einsum.Tensor(x, einsum.Spec((0, 1, 2))), einsum.Tensor(y, einsum.Spec((0, 3)))]
        return einsum.contract(tensors, (3, 1, 2))

    expected = np.einsum("dab,dc->cab", *(np.asarray(z, np.float32) for z in (x, y)))
    np.testing.assert_allclose(contract(x, y), expected, rtol=1e-6)


def test_gradients_of_other_rows_may_have_another_length():
    loss, params, _ = mlp()
    short, long = (mlp(n=3, t=2)[2], mlp(n=2, t=6)[2])
    transform = value_and_per_example_grads(loss)
    slow = [reference.per_example_grads(loss, params, rows) for rows in (short, long)]
    close(transform(params, short)[1].cross(transform(params, long)[1]), reference.cross(*slow))


def test_a_row_of_weight_zero_contributes_nothing_even_when_not_finite():
    loss, params, (x, y) = mlp()
    spoiled = x.at[1].set(jnp.nan)
    _, grads = value_and_per_example_grads(loss)(params, (spoiled, y))
    weights = jnp.asarray([1.0, 0.0, 2.0, 1.0])
    expected = scaled(reference.per_example_grads(loss, params, (x, y)), weights)
    close(grads.weighted_sum(weights), expected)
    np.testing.assert_array_equal(grads.finite(), [True, False, True, True])
    others = grads.gram()[jnp.asarray([0, 2, 3])][:, jnp.asarray([0, 2, 3])]
    assert jnp.isfinite(others).all(), "one bad row must not spoil the inner products of the others"


def test_layers_of_a_scanned_leaf_are_contracted_one_by_one():
    loss, params, batch = decoder()
    _, grads = value_and_per_example_grads(loss)(params, batch)
    slow = reference.per_example_grads(loss, params, batch)["layers"]["up"]
    flat = slow.swapaxes(0, 1).reshape(3, 4, -1)
    leaf = grads.by_leaf()["['layers']['up']"]
    layers = leaf.layers()
    close(layers.gram(), jnp.einsum("lnz,lmz->lnm", flat, flat))
    close(layers.squared_norms(), (flat**2).sum(-1))
    close(layers.dot(params["layers"]["up"]), jnp.einsum("lnz,lz->ln", flat, params["layers"]["up"].reshape(3, -1)))
    close(layers.cross(leaf[:2]), jnp.einsum("lnz,lmz->lnm", flat, flat[:, :2]))
    close(leaf.gram(), jnp.einsum("lnz,lmz->nm", flat, flat))


def test_layer_wise_weights_give_each_layer_its_own_sum():
    loss, params, batch = decoder()
    _, grads = value_and_per_example_grads(loss)(params, batch)
    slow = reference.per_example_grads(loss, params, batch)
    weights = jax.tree.map(lambda x: jnp.arange(4.0), params)
    weights["layers"] = jax.tree.map(lambda x: normal(1, 3, 4), params["layers"])
    found = grads.weighted_sum(weights)
    close(found["embed"], jnp.tensordot(jnp.arange(4.0), slow["embed"], 1))
    for name, w in weights["layers"].items():
        close(found["layers"][name], jnp.einsum("ln,nl...->l...", w, slow["layers"][name]))


def test_a_direction_product_equals_the_forward_mode_derivative():
    loss, params, batch = decoder()
    direction = jax.tree.map(lambda x: normal(x.size, *x.shape), params)
    _, grads = value_and_per_example_grads(loss)(params, batch)
    close(grads.dot(direction), reference.dot_by_jvp(loss, direction, params, batch))


@pytest.mark.parametrize("network", [decoder, mlp], ids=lambda f: f.__name__)
def test_gram_and_alignment_in_one_are_those_taken_apart(network):
    loss, params, batch = network(n=6, t=2)
    _, grads = value_and_per_example_grads(loss, instantiate_below=FACTORS)(params, batch)
    weights = jnp.asarray([0.7, 0.0])
    gram, alignment = jax.jit(lambda g: g[:4].gram_and_alignment(g[4:], weights))(grads)
    close((gram, alignment), (grads[:4].gram(), grads[:4].align(grads[4:], weights)))


def test_gram_and_direction_product_in_one_are_those_taken_apart():
    loss, params, batch = decoder(n=6, t=9)
    _, grads = value_and_per_example_grads(loss, instantiate_below=0.0)(params, batch)
    direction = jax.tree.map(lambda x: x + 0.1, params)
    together, apart = jax.jit(lambda g, v: (g.gram_and_dot(v), (g.gram(), g.dot(v))))(grads, direction)
    np.testing.assert_allclose(together[0], apart[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(together[1], apart[1], rtol=1e-4, atol=1e-5)


def test_leaves_sum_to_the_whole():
    loss, params, batch = decoder()
    _, grads = value_and_per_example_grads(loss)(params, batch)
    close(sum(leaf.gram() for leaf in grads.by_leaf().values()), grads.gram())


def test_a_direction_of_the_wrong_shape_is_named():
    loss, params, batch = mlp()
    _, grads = value_and_per_example_grads(loss)(params, batch)
    with pytest.raises(ArgumentError, match=r"\['first'\].*\(5, 9\)"):
        grads.dot({**params, "first": jnp.zeros((9, 5))})
    with pytest.raises(ArgumentError, match="structure"):
        grads.dot({"first": params["first"]})
    with pytest.raises(ArgumentError, match="different parameters"):
        grads.cross(grads.by_leaf()["['bias']"])
    with pytest.raises(ArgumentError, match="stacked"):
        grads.by_leaf()["['first']"].layers()


def test_indices_count_from_the_end_and_beyond_it_are_nan():
    loss, params, batch = mlp()
    _, grads = value_and_per_example_grads(loss)(params, batch)
    close(grads[jnp.asarray([-1, 0])].gram(), grads.gram()[jnp.asarray([3, 0])][:, jnp.asarray([3, 0])])
    assert jnp.isnan(grads[jnp.asarray([7])].gram()).all()


def test_weights_of_the_wrong_shape_are_named():
    loss, params, batch = mlp()
    _, grads = value_and_per_example_grads(loss)(params, batch)
    for weights in (jnp.ones(3), jax.tree.map(lambda x: jnp.ones((x.shape[0], 4)), params)):
        with pytest.raises(ArgumentError, match=r"must have \(4,\)"):
            grads.weighted_sum(weights)
