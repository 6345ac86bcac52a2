"""Adapters: what they change, what trains, and what merging gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from greats_jax.errors import ModelError
from greats_jax.models import LoraConfig, add_lora, combine, has_adapters, merge_lora, partition
from greats_jax.models.layers import Dropout
from greats_jax.models.lora import linear_maps

ALL = ("all-linear",)


def trained(model, scale=0.2):
    """The model with adapters moved away from their start."""
    graphdef, params, frozen = partition(model)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: leaf + scale * rng.normal(size=leaf.shape).astype(np.float32), params)
    return combine(graphdef, params, frozen)


def test_a_fresh_adapter_changes_nothing(kind, tiny, ids, logits_of):
    model = tiny(kind)
    adapted = add_lora(model, LoraConfig(rank=4, targets=ALL), jax.random.key(0))
    np.testing.assert_allclose(logits_of(adapted, ids), logits_of(model, ids), atol=2e-5)
    assert has_adapters(adapted)
    assert not has_adapters(model), "the given model was changed"


def test_merged_weights_give_the_same_logits(kind, tiny, ids, logits_of):
    model = tiny(kind)
    adapted = trained(add_lora(model, LoraConfig(rank=4, alpha=6.0, targets=ALL), jax.random.key(0)))
    merged = merge_lora(adapted)
    assert not has_adapters(merged)
    assert merged.lora is None
    assert partition(merged)[0] == partition(model)[0]
    assert np.abs(logits_of(adapted, ids) - logits_of(model, ids)).max() > 0.1
    np.testing.assert_allclose(logits_of(merged, ids), logits_of(adapted, ids), atol=2e-4)


def test_merge_is_w_plus_scaled_product(tiny):
    model = tiny()
    adapted = trained(add_lora(model, LoraConfig(rank=3, alpha=6.0, targets=("v_proj",)), jax.random.key(0)))
    lora = partition(adapted)[1]["layers"]["self_attn"]["v_proj"]["lora"]
    before = linear_maps(model)["self_attn.v_proj"].kernel[...]
    after = linear_maps(merge_lora(adapted))["self_attn.v_proj"].kernel[...]
    for layer in range(3):
        update = 2.0 * np.asarray(lora["a"][layer], np.float64) @ np.asarray(lora["b"][layer], np.float64)
        np.testing.assert_allclose(after[layer], before[layer] + update, atol=1e-5)


def test_start_is_uniform_in_the_bound_of_peft_and_differs_by_layer_and_map(tiny):
    adapted = add_lora(tiny(), LoraConfig(rank=8, targets=("q_proj", "k_proj")), jax.random.key(0))
    lora = partition(adapted)[1]["layers"]["self_attn"]
    a = np.asarray(lora["q_proj"]["lora"]["a"])
    bound = 1 / np.sqrt(24)
    assert np.abs(a).max() <= bound
    assert a.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert not np.array_equal(a[0], a[1])
    assert not np.array_equal(a, lora["k_proj"]["lora"]["a"])
    assert np.all(lora["q_proj"]["lora"]["b"] == 0)
    again = add_lora(tiny(), LoraConfig(rank=8, targets=("q_proj", "k_proj")), jax.random.key(0))
    np.testing.assert_array_equal(a, partition(again)[1]["layers"]["self_attn"]["q_proj"]["lora"]["a"])


def test_only_b_has_a_gradient_at_the_start(tiny, ids):
    graphdef, params, frozen = partition(add_lora(tiny(), LoraConfig(rank=2, targets=("q_proj",)), jax.random.key(0)))
    grads = jax.jit(jax.grad(lambda p, f: jnp.mean(jnp.tanh(combine(graphdef, p, f)(ids)))))(params, frozen)
    lora = grads["layers"]["self_attn"]["q_proj"]["lora"]
    assert np.all(lora["a"] == 0)
    assert (np.abs(lora["b"]).max(axis=(1, 2)) > 0).all(), "a layer has no gradient"


def test_dropout_draws_by_key_and_rests_without_one(tiny, ids, logits_of):
    model = trained(add_lora(tiny(), LoraConfig(rank=4, dropout=0.4), jax.random.key(0)))
    graphdef, params, frozen = partition(model)

    @jax.jit
    def run(key, deterministic):
        return combine(graphdef, params, frozen)(ids, dropout_key=key, deterministic=deterministic)

    off, on = jnp.array(True), jnp.array(False)
    plain = logits_of(model, ids)
    first, again, other = (np.asarray(run(jax.random.key(seed), on)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - plain).max() > 1e-3
    np.testing.assert_allclose(run(jax.random.key(0), off), plain, atol=1e-5)
    np.testing.assert_allclose(run(jax.random.PRNGKey(0), off), plain, atol=1e-5)  # raw keys are taken too


def test_dropout_differs_by_row_under_vmap_with_a_flag_per_row(tiny, ids, logits_of):
    model = trained(add_lora(tiny(), LoraConfig(rank=4, dropout=0.4), jax.random.key(0)))
    graphdef, params, frozen = partition(model)

    def one(row, key, deterministic):
        return combine(graphdef, params, frozen)(row[None], dropout_key=key, deterministic=deterministic)[0]

    rows = jnp.stack([ids[0]] * 3)
    out = jax.jit(jax.vmap(one))(rows, jax.random.split(jax.random.PRNGKey(0), 3), jnp.array([False, False, True]))
    plain = logits_of(model, ids)[0]
    assert np.abs(out[0] - out[1]).max() > 1e-3
    np.testing.assert_allclose(out[2], plain, atol=1e-5)


def test_dropout_differs_by_layer_and_map(tiny, monkeypatch):
    # Every mask drawn in one pass over unrolled layers must come from its own key.
    drawn = []
    draw = Dropout.__call__
    monkeypatch.setattr(Dropout, "__call__", lambda self, x, rate: drawn.append(self.key) or draw(self, x, rate))
    config = LoraConfig(rank=2, dropout=0.5, targets=("q_proj", "up_proj"))
    model = add_lora(tiny(layers=2), config, jax.random.key(0))
    with jax.disable_jit():  # runs the scan as a Python loop
        model(jnp.arange(2)[None], dropout_key=jax.random.key(0))
    assert len(drawn) == 2 * 2
    assert len({np.asarray(jax.random.key_data(key)).tobytes() for key in drawn}) == 2 * 2


def test_adapters_stay_float32_beside_a_bfloat16_base(tiny, ids):
    model = add_lora(tiny(dtype="bfloat16", compute_dtype="bfloat16"), LoraConfig(rank=2), jax.random.key(0))
    _, params, frozen = partition(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.eval_shape(lambda i: model.hidden(i), ids).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("kind", "targets", "paths"),
    [
        ("llama", ("q_proj", "mlp.down_proj"), {"self_attn.q_proj", "mlp.down_proj"}),
        ("gpt2", ("c_proj",), {"attn.c_proj", "mlp.c_proj"}),
        ("gpt2", ("attn.c_proj", "c_attn"), {"attn.c_proj", "attn.c_attn"}),
        ("gpt2", ALL, {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    ],
)
def test_targets_are_matched_as_peft_does(kind, targets, paths, tiny):
    model = add_lora(tiny(kind), LoraConfig(rank=2, targets=targets), jax.random.key(0))
    assert {path for path, linear in linear_maps(model).items() if linear.lora is not None} == paths


@pytest.mark.parametrize(
    ("kind", "valid"),
    [("llama", "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"), ("gpt2", "c_attn, c_fc, c_proj")],
)
def test_an_unknown_target_names_the_valid_ones(kind, valid, tiny):
    with pytest.raises(ModelError, match=f"'query' is not in this model: use {valid} or all-linear"):
        add_lora(tiny(kind), LoraConfig(targets=("query",)), jax.random.key(0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": -4}, "rank is -4: it must be a whole number of at least 1"),
        ({"rank": 2.5}, "rank is 2.5"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout"),
        ({"targets": ()}, "targets"),
        ({"targets": "q_proj"}, "targets"),
        ({"dtype": "float8"}, "lora dtype 'float8'"),
    ],
)
def test_meaningless_settings_are_refused(settings, message):
    with pytest.raises(ModelError, match=message):
        LoraConfig(**settings)


def test_a_second_adapter_is_refused(tiny):
    adapted = add_lora(tiny(), LoraConfig(rank=2), jax.random.key(0))
    with pytest.raises(ModelError, match="already has LoRA adapters"):
        add_lora(adapted, LoraConfig(rank=2), jax.random.key(0))
