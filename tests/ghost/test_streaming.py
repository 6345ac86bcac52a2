"""Contraction inside the backward pass: the same numbers, and no factor that outlives its layer."""

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from networks import decoder, decoder_loss, mlp, remat_decoder

from greats_jax.errors import ArgumentError
from greats_jax.ghost import value_and_contraction, value_and_per_example_grads


def gram_and_more(grads, layer, direction):
    return {"gram": grads.gram(), "dot": grads.dot(direction), "norms": grads.squared_norms()}


def shapes_between_scans(jaxpr):
    """Shapes of all values outside loops, in every sub-program that is not a loop body."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in eqn.outvars)
        if eqn.primitive.name not in ("scan", "while"):
            for inner in jex.jaxprs_in_params(eqn.params):
                yield from shapes_between_scans(inner)


@pytest.mark.parametrize("network", [decoder, remat_decoder, mlp], ids=lambda f: f.__name__)
@pytest.mark.parametrize("instantiate_below", [0.0, 0.5])
def test_streamed_contractions_equal_those_of_kept_factors(network, instantiate_below):
    loss, params, batch = network()
    direction = jax.tree.map(lambda x: x + 0.1, params)
    losses, grads = value_and_per_example_grads(loss, instantiate_below=instantiate_below)(params, batch)
    streamed = value_and_contraction(loss, gram_and_more, instantiate_below=instantiate_below)
    again, found = streamed(params, batch, like=(direction,))
    np.testing.assert_allclose(again, losses, rtol=1e-6)
    expected = {"gram": grads.gram(), "dot": grads.dot(direction), "norms": grads.squared_norms()}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=name)


def test_layers_are_told_apart_by_their_index():
    loss, params, batch = decoder(layers=3)
    _, grads = value_and_per_example_grads(loss)(params, batch)
    name = "['layers']['up']"

    def first_layer_only(grads, layer):
        return jnp.zeros((4, 4)) if layer is None else jnp.where(layer == 0, grads.gram(), 0)

    _, found = value_and_contraction(loss, first_layer_only, leaves=lambda path: path == name)(params, batch)
    np.testing.assert_allclose(found, grads.by_leaf()[name].layers().gram()[0], rtol=1e-4, atol=1e-6)


def test_no_factor_is_stacked_over_the_layers():
    _, params, batch = decoder(n=2, t=5, layers=7)
    down = params.pop("shared_down")

    def with_fixed_down(params, down, z):
        return decoder_loss({**params, "shared_down": down}, z, checkpoint=True)

    def largest(fn):
        jaxpr = jax.make_jaxpr(fn)(params, down, batch).jaxpr
        return max(np.prod(s) for s in shapes_between_scans(jaxpr) if s[:2] == (7, 2))

    inputs_of_layers = 7 * 2 * 5 * 8
    kept = value_and_per_example_grads(with_fixed_down)
    assert largest(lambda *args: kept(*args)[1].gram()) > inputs_of_layers
    assert largest(value_and_contraction(with_fixed_down, lambda g, _: g.gram())) == inputs_of_layers


def test_a_part_of_the_parameters_stops_the_backward_pass():
    loss, params, batch = decoder()

    def work(leaves):
        fn = value_and_contraction(loss, lambda g, _: g.gram(), leaves=leaves)
        return str(jax.make_jaxpr(fn)(params, batch)).count("scan[")

    assert work(lambda path: "embed" in path and "layers" not in path) >= 2
    # The final table is used after the layers, but it is tied: its other use is before them.
    assert work(lambda path: "'up'" in path) == 2


def test_auxiliary_outputs_and_wrong_trees():
    loss, params, batch = mlp()
    fn = value_and_contraction(lambda p, z: (loss(p, z), 3), lambda g, _: g.gram(), has_aux=True)
    (losses, aux), gram = fn(params, batch)
    assert losses.shape == aux.shape == (4,)
    assert gram.shape == (4, 4)
    with pytest.raises(ArgumentError, match="structure"):
        fn(params, batch, like=({"first": 1.0},))
