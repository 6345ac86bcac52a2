"""What every decoder must do, whatever its family."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from greats_jax.errors import ModelError
from greats_jax.models import Decoder, combine, partition
from greats_jax.models.layers import causal_attention


def test_random_weights(kind, config_of):
    first, again, other = (partition(Decoder(config_of(kind), jax.random.key(seed)))[1] for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert float(jnp.std(first["embed"])) == pytest.approx(0.02, rel=0.1)
    assert not np.array_equal(first["embed"], other["embed"])
    kernels = [leaf for leaf in jax.tree.leaves(first["layers"]) if leaf.ndim == 3]
    assert all(not np.array_equal(kernel[0], kernel[1]) for kernel in kernels), "layers start alike"


def test_shapes_and_dtypes(kind, tiny, ids):
    model = tiny(kind)
    out = jax.eval_shape(lambda i: model(i), ids)
    hidden = jax.eval_shape(lambda i: model.hidden(i), ids)
    assert (out.shape, out.dtype) == ((2, 11, 61), jnp.float32)
    assert hidden.shape == (2, 11, 24)


def test_head_of_hidden_is_the_call(kind, tiny, ids, logits_of):
    model = tiny(kind)
    np.testing.assert_allclose(jax.jit(lambda i: model.head(model.hidden(i)))(ids), logits_of(model, ids), atol=1e-5)


def test_a_token_does_not_see_later_ones(kind, tiny, ids, logits_of):
    model = tiny(kind)
    changed = ids.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % 60
    before, after = logits_of(model, ids), logits_of(model, changed)
    np.testing.assert_allclose(before[:, :7], after[:, :7], atol=1e-6)
    assert np.abs(before[:, 7:] - after[:, 7:]).max() > 0.1


def test_a_token_sees_earlier_ones(kind, tiny, ids, logits_of):
    model = tiny(kind)
    changed = ids.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 60
    difference = np.abs(logits_of(model, ids) - logits_of(model, changed)).max(axis=(0, 2))
    assert difference[:5].max() == 0
    assert difference[6:8].min() > 1e-3


@pytest.mark.parametrize("mask_dtype", [bool, np.int32])
def test_padding_changes_nothing(kind, tiny, ids, logits_of, mask_dtype):
    model = tiny(kind)
    padded = np.concatenate([ids, np.full((2, 5), 9, np.int32)], axis=1)
    mask = (np.arange(16) < 11).astype(mask_dtype)[None].repeat(2, axis=0)
    with_padding = logits_of(model, padded, mask)
    np.testing.assert_allclose(with_padding[:, :11], logits_of(model, ids), atol=1e-5)
    assert np.isfinite(with_padding).all()


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_an_empty_row_is_finite_and_so_is_its_gradient(kind, tiny, ids):
    graphdef, params, _ = partition(tiny(kind))
    mask = jnp.zeros(ids.shape, bool)
    loss = jax.jit(jax.value_and_grad(lambda p: jnp.sum(combine(graphdef, p, {})(ids, mask) ** 2)))
    value, grads = loss(params)
    assert jnp.isfinite(value)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_scan_is_the_loop_over_layers(kind, tiny, ids, logits_of):
    model = tiny(kind)
    np.testing.assert_allclose(jax.jit(lambda i: unrolled(model, i))(ids), logits_of(model, ids), atol=1e-5)


def unrolled(model, ids):
    positions = jnp.arange(ids.shape[1])
    x = model.embedded(ids, positions)
    blocks, state = nnx.split(model.layers)
    windows = model.config.windows or (0,) * model.config.layers
    for layer in range(model.config.layers):
        block = nnx.merge(blocks, jax.tree.map(lambda leaf, layer=layer: leaf[layer], nnx.to_pure_dict(state)))

        def attend(q, k, v, window=windows[layer]):
            return causal_attention(model.place(q, positions), model.place(k, positions), v, None, window), None

        x, _ = block(x, attend)
    return model.head(model.norm(x))


def test_single_examples_under_vmap_are_the_batch(kind, tiny, ids, logits_of):
    model = tiny(kind)
    graphdef, params, frozen = partition(model)
    mask = np.arange(11)[None] < np.array([[11], [6]])
    rows = jax.jit(jax.vmap(lambda i, m: combine(graphdef, params, frozen)(i[None], m[None])[0]))(ids, mask)
    np.testing.assert_allclose(rows, logits_of(model, ids, mask), atol=1e-5)


@functools.cache
def loss_and_grads(tiny, kind, remat):
    graphdef, params, _ = partition(tiny(kind, remat=remat))
    row = jnp.arange(9)[None]
    return jax.jit(jax.value_and_grad(lambda p: jnp.mean(jnp.tanh(combine(graphdef, p, {})(row)))))(params)


@pytest.mark.parametrize(("kind", "remat"), [("qwen2", "full"), ("qwen2", "dots"), ("gpt2", "full")])
def test_rematerialisation_changes_no_value(kind, remat, tiny):
    plain, recomputed = loss_and_grads(tiny, kind, "none"), loss_and_grads(tiny, kind, remat)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), plain, recomputed)


def test_rematerialisation_is_really_asked_for(tiny, ids):
    def traced(remat):
        return str(jax.make_jaxpr(lambda i: tiny(remat=remat)(i))(ids))

    assert "remat" not in traced("none")
    assert "remat" in traced("full")


def test_program_does_not_grow_with_depth(kind, tiny, ids):
    def size(layers):
        windows = tiny(kind).config.windows
        graphdef, params, _ = partition(tiny(kind, layers=layers, windows=(windows * 2)[:layers]))
        jaxpr = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(combine(graphdef, p, {})(ids))))(params)
        return len(str(jaxpr).splitlines())

    assert size(2) == size(6)


def test_bfloat16_parameters_and_compute(tiny, ids, logits_of):
    model = tiny(dtype="bfloat16", compute_dtype="bfloat16")
    graphdef, params, _ = partition(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.eval_shape(lambda i: model.hidden(i), ids).dtype == jnp.bfloat16
    exact = combine(partition(tiny())[0], jax.tree.map(lambda x: x.astype(jnp.float32), params), {})
    low, high = logits_of(model, ids), logits_of(exact, ids)
    assert low.dtype == np.float32
    assert 0 < np.abs(low - high).max() < 0.15 * np.abs(high).max()
    grads = jax.eval_shape(jax.grad(lambda p: jnp.mean(combine(graphdef, p, {})(ids))), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}


def test_float32_parameters_with_bfloat16_compute(tiny, ids):
    model = tiny(compute_dtype="bfloat16")
    assert jax.eval_shape(lambda i: model.hidden(i), ids).dtype == jnp.bfloat16
    assert jax.eval_shape(lambda i: model(i), ids).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(partition(model)[1])} == {jnp.dtype(jnp.float32)}


def test_tied_head_is_one_array(tiny):
    params = partition(tiny("smollm2"))[1]
    assert "lm_head" not in params
    assert "lm_head" in partition(tiny("llama"))[1]


def test_ids_outside_the_vocabulary_do_not_pass_for_a_token(tiny, logits_of):
    assert np.isnan(logits_of(tiny(), np.array([[1, 61]]))[0, 1]).all()


def test_a_window_hides_what_lies_further_back(tiny, ids, logits_of):
    # Three layers of four tokens reach nine tokens back, no more.
    model = tiny("mistral")
    changed = ids.copy()
    changed[:, 0] = (changed[:, 0] + 1) % 60
    difference = np.abs(logits_of(model, ids) - logits_of(model, changed)).max(axis=(0, 2))
    assert (difference[:10] > 0).all()
    assert difference[10] == 0


def test_dtype_names_are_checked(tiny):
    with pytest.raises(ModelError, match="'float16' is not supported: use one of float32, bfloat16"):
        tiny(dtype="float16")
