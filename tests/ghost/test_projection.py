"""Random features against gradients: the map is linear, right on average, and forms nothing as large as a gradient."""

import functools
from dataclasses import replace

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from networks import branching, convolution, decoder, mlp, normal, routing, tokens

from greats_jax.errors import ArgumentError
from greats_jax.ghost import reference, value_and_contraction, value_and_per_example_grads

FACTORS, PRODUCTS = 0.0, 1e9


@functools.cache
def gradients(network, instantiate_below=FACTORS):
    loss, params, batch = network()
    return value_and_per_example_grads(loss, instantiate_below=instantiate_below)(params, batch)[1]


@functools.partial(jax.jit, static_argnums=1)
def project(grads, rank, key, layer=None):
    return grads.project(rank, key, layer)


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * float(jnp.abs(expected).max()))


def flat(tree):
    """[n, ...] leaves side by side."""
    return jnp.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(tree)], 1)


@functools.partial(jax.jit, static_argnums=(1, 2))
def products_over_keys(grads, rank, keys=2000):
    """Inner products of features, one table for every key: [keys, n, n]."""

    def product(key):
        found = grads.project(rank, key)
        return found @ found.T

    return jax.vmap(product)(jax.random.split(jax.random.key(1), keys))


def assert_mean_is(tables, gram):
    """The mean over keys is the Gram matrix up to five standard errors, which are small beside it."""
    error = tables.std(0) / np.sqrt(len(tables))
    scale = jnp.sqrt(jnp.diagonal(gram))
    assert (error <= 0.03 * scale[:, None] * scale).all(), "too few keys to see a bias"
    assert (jnp.abs(tables.mean(0) - gram) <= 5 * error + 1e-5 * scale[:, None] * scale).all()


def map_matrix(params, rank, key):
    """The map itself, [parameters, rank]: features of a loss whose gradients are the unit vectors."""
    sizes = [x.size for x in jax.tree.leaves(params)]
    parts = jnp.split(jnp.eye(sum(sizes)), np.cumsum(sizes)[:-1], axis=1)
    shaped = [x.reshape(-1, *p.shape) for x, p in zip(parts, jax.tree.leaves(params), strict=True)]

    def linear(params, unit):
        pairs = jax.tree.map(lambda w, x: (w, x), params, unit)
        layers = pairs.pop("layers", ())

        def add(total, pairs):
            return total + sum(jnp.vdot(w, x) for w, x in jax.tree.leaves(pairs, is_leaf=is_pair)), None

        return jax.lax.scan(add, add(0.0, pairs)[0], layers)[0] if layers else add(0.0, pairs)[0]

    units = jax.tree.unflatten(jax.tree.structure(params), shaped)
    return project(value_and_per_example_grads(linear)(params, units)[1], rank, key)


def is_pair(x):
    return isinstance(x, tuple)


# Ranks below and above the sizes of leaves, one that is prime, and one that leaves no side more than one column.
LINEAR = [
    (mlp, FACTORS, 16),
    (mlp, PRODUCTS, 3),
    (decoder, FACTORS, 16),
    (convolution, FACTORS, 12),
    (routing, FACTORS, 20),
    (branching, FACTORS, 7),
]


@pytest.mark.parametrize(("network", "instantiate_below", "rank"), LINEAR, ids=lambda x: getattr(x, "__name__", x))
def test_the_map_is_one_matrix_however_the_gradient_is_factored(network, instantiate_below, rank):
    loss, params, batch = network()
    key = jax.random.key(3)
    found = project(gradients(network, instantiate_below), rank, key)
    assert found.shape == (4, rank)
    assert found.dtype == jnp.float32
    slow = jax.jit(functools.partial(reference.per_example_grads, loss))(params, batch)
    close(found, flat(slow) @ map_matrix(params, rank, key))


@pytest.mark.parametrize("network", [decoder, mlp, convolution, routing], ids=lambda f: f.__name__)
def test_inner_products_are_right_on_average(network):
    grads = gradients(network)
    assert_mean_is(products_over_keys(grads, 16), grads.gram())


def test_the_two_uses_of_a_tied_table_share_one_map():
    leaf = gradients(decoder).by_leaf()["['embed']"]
    tables, gram = products_over_keys(leaf, 16), leaf.gram()
    assert_mean_is(tables, gram)
    uses = [replace(leaf, leaves=(replace(leaf.leaves[0], terms=(term,)),)) for term in leaf.leaves[0].terms]
    with pytest.raises(AssertionError):  # what maps of their own would give: no cross term
        assert_mean_is(tables, sum(use.gram() for use in uses))
    key = jax.random.key(0)
    close(sum(project(use, 16, key) for use in uses), project(leaf, 16, key))


def test_layers_and_leaves_have_maps_of_their_own():
    """Two equal gradients in two places must not add up coherently: their features are independent."""

    def loss(params, x):
        stacked = jax.lax.scan(lambda total, w: (total + jnp.vdot(w, x), None), 0.0, params["stacked"])[0]
        return stacked + jnp.vdot(params["left"], x) + jnp.vdot(params["right"], x)

    params = {"stacked": jnp.ones((3, 6, 7)), "left": jnp.ones((6, 7)), "right": jnp.ones((6, 7))}
    _, grads = value_and_per_example_grads(loss)(params, normal(0, 2, 6, 7))
    assert grads.leaves[2].stack is not None
    assert_mean_is(products_over_keys(grads, 9), grads.gram())


@pytest.mark.parametrize(("shape", "rank"), [((20000,), 4), ((1500, 40), 64)], ids=["vector", "matrix"])
def test_the_signs_of_a_large_leaf_do_not_repeat(shape, rank):
    """Equal entries, which add up coherently where two of them have the same sign and slot for every key."""
    _, grads = value_and_per_example_grads(jnp.vdot)(jnp.ones(shape), jnp.ones((1, *shape)))
    assert_mean_is(products_over_keys(grads, rank, 1000), grads.gram())


def test_features_of_layers_add_up_to_those_of_their_stack():
    loss, params, batch = decoder()
    key = jax.random.key(5)

    def contract(grads, layer):
        return grads.project(30, key, layer)

    _, total = value_and_contraction(loss, contract, instantiate_below=FACTORS)(params, batch)
    close(total, project(gradients(decoder), 30, key))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_one_layer_by_itself_has_the_map_of_its_place_in_the_stack(impl):
    key = jax.random.key(5, impl=impl)

    def loss(params, x):
        return jax.lax.scan(lambda total, w: (total + jnp.vdot(w, x), None), 0.0, params)[0]

    x = normal(0, 2, 6, 7)
    whole, layer = (
        value_and_per_example_grads(f)(jnp.ones(shape), x)[1] for f, shape in ((loss, (3, 6, 7)), (jnp.vdot, (6, 7)))
    )
    close(sum(project(layer, 9, key, i) for i in range(3)), project(whole, 9, key))


def test_rows_do_not_touch_each_other():
    loss, params, (x, y) = mlp()
    _, grads = value_and_per_example_grads(loss)(params, (x, y))
    key = jax.random.key(0)
    whole = project(grads, 16, key)
    close(project(grads[jnp.asarray([2, 0])], 16, key), whole[jnp.asarray([2, 0])])
    close(project(grads[1:3], 16, key), whole[1:3])
    _, spoiled = value_and_per_example_grads(loss)(params, (x.at[1].set(jnp.nan), y))
    found = project(spoiled, 16, key)
    assert jnp.isnan(found[1]).any()
    close(found[jnp.asarray([0, 2, 3])], whole[jnp.asarray([0, 2, 3])])


def test_the_error_falls_as_the_root_of_the_rank():
    grads = gradients(decoder)
    gram = grads.gram()
    scale = jnp.sqrt(jnp.diagonal(gram)[:, None] * jnp.diagonal(gram))
    error, less = (jnp.sqrt(jnp.mean(((products_over_keys(grads, r) - gram) / scale) ** 2)) for r in (16, 64))
    assert less < 0.6 * error
    assert less < 1.6 / np.sqrt(64), "little worse than a projection of the whole gradient"


def test_a_leaf_that_fits_is_exact():
    grads = gradients(mlp)
    for leaf in grads.by_leaf().values():
        found = project(leaf, 45, jax.random.key(2))
        close(found @ found.T, leaf.gram())
    assert float(jnp.abs(found @ found.T - grads.gram()).max()) > 1e-3, "the leaves together do not fit"


def sizes_made(jaxpr):
    """Elements of every value that a program makes, inner programs included; its inputs do not count."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.size for v in eqn.outvars)
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from sizes_made(inner)


def test_a_vocabulary_is_never_laid_out_per_example():
    n, t, d, vocab, rank = 3, 6, 32, 5000, 64
    signs = vocab * 8  # the side of the vocabulary gets the root of the rank

    def tied_loss(params, example):
        x, y = example
        logits = params["embed"][x] @ params["embed"].T
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    def embedding_loss(params, example):
        return jnp.mean(params["embed"][example[0]] ** 2)

    params = {"embed": normal(0, vocab, d)}
    batch = tokens(1, n, t, below=vocab), tokens(2, n, t, below=vocab)
    # A head's factor is [n, t, V] and may be seen again under another shape; ids are not spread to that.
    for loss, limit in ((tied_loss, n * t * vocab), (embedding_loss, 1.3 * signs)):
        _, grads = value_and_per_example_grads(loss)(params, batch)
        program = jax.make_jaxpr(lambda g, key: g.project(rank, key))(grads, jax.random.key(0))
        assert signs <= max(sizes_made(program.jaxpr)) <= limit < n * vocab * d


def test_bfloat16_operands_are_accumulated_in_float32():
    loss, params, (x, y) = mlp()

    def half(params, example):
        low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), (params, example))
        return loss(*low).astype(jnp.float32)

    _, grads = value_and_per_example_grads(half, instantiate_below=FACTORS)(params, (x, y))
    assert any(a.dtype == jnp.bfloat16 for a in grads.operands)
    found, expected = (project(g, 16, jax.random.key(0)) for g in (grads, gradients(mlp)))
    assert found.dtype == jnp.float32
    close(found, expected, 2e-2)
    # Exact for the operands as they are: signs lose nothing in bfloat16.
    close(found, flat(grads.materialize()) @ map_matrix(params, 16, jax.random.key(0)))


def test_leaves_without_a_gradient_add_nothing():
    loss, params, batch = mlp()

    def padded(params, example):
        return loss(params["used"], example)

    both = {"used": params, "count": jnp.arange(3), "unused": normal(0, 4, 4)}
    _, grads = value_and_per_example_grads(padded)(both, batch)
    assert {spec.kind for spec in grads.leaves} >= {"constant", "zero"}
    key = jax.random.key(0)
    used, unused = (grads.only(lambda path, name=name: path == name) for name in ("['used']['first']", "['unused']"))
    rest = grads.only(lambda path: path in ("['used']['second']", "['used']['bias']"))
    close(project(grads, 16, key), project(used, 16, key) + project(rest, 16, key))
    np.testing.assert_array_equal(project(unused, 16, key), jnp.zeros((4, 16)))


@pytest.mark.parametrize("rank", [0, -4, 2.5, "64"])
def test_a_rank_that_is_no_number_of_features_is_named(rank):
    grads = gradients(mlp)
    with pytest.raises(ArgumentError, match=str(rank)):
        grads.project(rank, jax.random.key(0))
