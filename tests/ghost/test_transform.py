"""The shape of the transform: arguments, outputs, composition with other transforms, and what it recognises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import convolution, decoder, mlp, normal, remat_decoder

from greats_jax.errors import ArgumentError
from greats_jax.ghost import PerExampleGrads, reference, value_and_per_example_grads


def test_auxiliary_outputs_come_back_batched():
    loss, params, batch = mlp()
    transform = value_and_per_example_grads(lambda p, z: (loss(p, z), {"twice": 2 * loss(p, z)}), has_aux=True)
    (losses, aux), grads = transform(params, batch)
    assert losses.shape == (4,)
    assert len(grads) == 4
    np.testing.assert_allclose(aux["twice"], 2 * losses, rtol=1e-6)


def test_several_arguments_can_be_parameters_and_frozen_ones_are_not():
    loss, params, batch = mlp()

    def split_loss(first, frozen, second, z):
        return loss({**first, **frozen, **second}, z)

    parts = [{k: params[k]} for k in ("first", "bias", "second")]
    _, grads = value_and_per_example_grads(split_loss, argnums=(0, 2))(*parts, batch)
    total = grads.weighted_sum(jnp.ones(4))
    expected = jax.grad(lambda p: jax.vmap(loss, (None, 0))(p, batch).sum())(params)
    assert isinstance(total, tuple)
    assert set(grads.by_leaf()) == {"[0]['first']", "[1]['second']"}
    np.testing.assert_allclose(total[0]["first"], expected["first"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(total[1]["second"], expected["second"], rtol=1e-4, atol=1e-6)


def test_integer_and_boolean_parameters_are_constants():
    loss, params, batch = mlp()
    extended = {**params, "count": jnp.arange(3), "flag": jnp.asarray(True)}
    _, grads = value_and_per_example_grads(loss)(extended, batch)
    _, plain = value_and_per_example_grads(loss)(params, batch)
    np.testing.assert_allclose(grads.gram(), plain.gram(), rtol=1e-6)
    np.testing.assert_allclose(grads.dot(extended), plain.dot(params), rtol=1e-6)
    total = grads.weighted_sum(jnp.ones(4))
    np.testing.assert_array_equal(total["count"], np.zeros(3))
    assert total["count"].dtype == jnp.int32
    assert total["flag"].dtype == bool
    assert grads.explain()["['count']"].kind == "constant"


def test_a_parameter_that_the_loss_does_not_use_has_gradient_zero():
    loss, params, batch = mlp()
    _, grads = value_and_per_example_grads(loss)({**params, "spare": normal(0, 3, 2)}, batch)
    _, plain = value_and_per_example_grads(loss)(params, batch)
    np.testing.assert_allclose(grads.gram(), plain.gram(), rtol=1e-6)
    np.testing.assert_array_equal(grads.weighted_sum(jnp.ones(4))["spare"], np.zeros((3, 2)))
    assert grads.explain()["['spare']"].kind == "zero"


def test_results_keep_the_dtype_of_their_parameter():
    loss, params, batch = mlp()
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    _, grads = value_and_per_example_grads(loss)(half, batch)
    assert {x.dtype for x in jax.tree.leaves(grads.weighted_sum(jnp.ones(4)))} == {jnp.dtype("bfloat16")}
    assert {x.dtype for x in jax.tree.leaves(grads.weighted_sum(jnp.ones(4), dtype=jnp.float32))} == {
        jnp.dtype("float32")
    }
    assert grads.gram().dtype == jnp.float32


def test_a_batch_of_one_works():
    loss, params, batch = decoder(n=1)
    _, grads = value_and_per_example_grads(loss, instantiate_below=0.0)(params, batch)
    slow = reference.per_example_grads(loss, params, batch)
    np.testing.assert_allclose(grads.gram(), reference.gram(slow), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads.materialize(), slow)


def test_it_composes_with_jit_scan_and_vmap():
    loss, params, batch = mlp()
    transform = value_and_per_example_grads(loss)

    def gram(params):
        return transform(params, batch)[1].gram()

    expected = gram(params)
    np.testing.assert_allclose(jax.jit(gram)(params), expected, rtol=1e-5)
    _, stacked = jax.lax.scan(lambda c, _: (c, gram(params)), 0, None, length=2)
    np.testing.assert_allclose(stacked[1], expected, rtol=1e-5)
    both = jax.vmap(gram)(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params))
    np.testing.assert_allclose(both[0], expected, rtol=1e-5)
    np.testing.assert_allclose(both[1], gram(jax.tree.map(lambda x: 2 * x, params)), rtol=1e-4)


def test_the_result_crosses_function_boundaries_as_a_pytree():
    loss, params, batch = mlp()
    transform = jax.jit(value_and_per_example_grads(loss))
    _, grads = transform(params, batch)
    assert isinstance(grads, PerExampleGrads)
    np.testing.assert_allclose(jax.jit(lambda g: g[1:3].gram())(grads), grads.gram()[1:3, 1:3], rtol=1e-5)


@pytest.mark.parametrize("network", [decoder, remat_decoder], ids=lambda f: f.__name__)
def test_matrices_are_factored_through_scan_and_remat(network):
    loss, params, batch = network()
    _, grads = value_and_per_example_grads(loss, instantiate_below=0.0)(params, batch)
    kinds = {row.path: row.kind for row in grads.explain()}
    matrices = [f"['layers']['{name}']" for name in ("q", "k", "v", "o", "up", "a", "b")] + [
        "['embed']",
        "['shared_down']",
    ]
    assert {kinds[path] for path in matrices} == {"factored"}, kinds


def test_an_input_shared_by_several_weights_is_stored_once():
    loss, params, batch = decoder()
    _, grads = value_and_per_example_grads(loss, instantiate_below=0.0)(params, batch)
    positions = [
        {i for i, _ in leaf.terms[0].operands}
        for leaf in grads.leaves
        if leaf.path in ("['layers']['q']", "['layers']['k']")
    ]
    assert len(positions[0] & positions[1]) == 1


def test_the_tied_table_of_a_vocabulary_is_two_terms_and_is_never_expanded():
    loss, params, batch = decoder()
    _, grads = value_and_per_example_grads(loss)(params, batch)
    leaf = next(leaf for leaf in grads.leaves if leaf.path == "['embed']")
    assert len(leaf.terms) == 2
    assert any(spec.one_hot is not None for _, spec in leaf.terms[1].operands + leaf.terms[0].operands)


def test_what_is_not_recognised_is_materialised_alone_and_named():
    loss, params, batch = convolution()
    _, grads = value_and_per_example_grads(loss)(params, batch)
    assert grads.explain()["['kernel']"].kind == "materialized (ended at conv_general_dilated)"
    assert "conv_general_dilated" in str(grads.explain())


def test_factors_of_large_weights_are_smaller_than_per_example_gradients():
    params = {"w": normal(0, 64, 96)}
    batch = normal(1, 8, 3, 64)
    _, grads = value_and_per_example_grads(lambda p, x: jnp.sum(jnp.tanh(x @ p["w"])))(params, batch)
    assert sum(a.size for a in grads.operands) == 8 * 3 * (64 + 96)


@pytest.mark.parametrize(
    ("argnums", "words"), [(1, "the batch"), (-1, "the batch"), (7, "argument 7"), ((0, 0), "twice")]
)
def test_argnums_that_cannot_be_are_refused(argnums, words):
    loss, params, batch = mlp()
    with pytest.raises(ArgumentError, match=words):
        value_and_per_example_grads(loss, argnums=argnums)(params, batch)


def test_batches_that_cannot_be_are_refused():
    loss, params, (x, y) = mlp()
    transform = value_and_per_example_grads(loss)
    with pytest.raises(ArgumentError, match="disagree on axis 0"):
        transform(params, (x, y[:2]))
    with pytest.raises(ArgumentError, match="empty"):
        transform(params, (x[:0], y[:0]))
    with pytest.raises(ArgumentError, match="scalar"):
        transform(params, (x, 1.0))
    with pytest.raises(ArgumentError, match="at least two"):
        transform(params)


@pytest.mark.parametrize("dtype", [bool, jnp.int32, jnp.bfloat16])
def test_a_cast_that_loses_a_value_is_not_looked_through(dtype):
    def loss(params, frozen, x):
        scale = jnp.broadcast_to(frozen, (5, 7)).astype(dtype).astype(jnp.float32)
        return jnp.sum((x @ (params * scale)) ** 2)

    params, frozen, batch = normal(0, 5, 7), jnp.asarray(2.7), normal(1, 3, 2, 5)
    _, grads = value_and_per_example_grads(loss, instantiate_below=0.0)(params, frozen, batch)
    slow = reference.per_example_grads(loss, params, frozen, batch)
    np.testing.assert_allclose(grads.gram(), reference.gram(slow), rtol=1e-5)


def test_complex_parameters_are_refused():
    with pytest.raises(ArgumentError, match="complex"):
        value_and_per_example_grads(lambda p, x: jnp.abs(p * x).sum())(jnp.ones(3, complex), jnp.ones((2, 3)))
