"""Splitting a model into plain dicts and putting it together again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from greats_jax.errors import ModelError
from greats_jax.models import LoraConfig, add_lora, combine, cut_layers, partition
from greats_jax.models.families import FAMILIES


def leaves_by_path(tree):
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_every_weight_trains_where_there_are_no_adapters(kind, tiny):
    model = tiny(kind)
    _, params, frozen = partition(model)
    assert frozen == {}
    # The checkpoint names of a family cover its parameters exactly.
    assert set(leaves_by_path(params)) == {w.path for w in FAMILIES[model.config.family].weights(model.config)}
    assert all(type(node) is dict for node in (params, params["layers"]))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))


def test_only_adapters_train_where_there_are_some(tiny):
    model = tiny()
    adapted = add_lora(model, LoraConfig(rank=2, targets=("q_proj", "up_proj")), jax.random.key(0))
    _, params, frozen = partition(adapted)
    assert set(leaves_by_path(params)) == {
        ("layers", part, name, "lora", factor)
        for part, name in (("self_attn", "q_proj"), ("mlp", "up_proj"))
        for factor in "ab"
    }
    assert set(leaves_by_path(frozen)) == set(leaves_by_path(partition(model)[1]))
    assert params["layers"]["self_attn"]["q_proj"]["lora"]["a"].shape == (3, 24, 2)


def test_structure_is_static_and_shared_by_equal_models(tiny):
    first, second = partition(tiny())[0], partition(tiny())[0]
    assert hash(first) == hash(second)
    assert first == second
    assert partition(tiny(remat="full"))[0] != first


def test_combine_works_inside_scan_and_leaves_the_parameters_alone(tiny, ids, logits_of):
    model = tiny()
    graphdef, params, frozen = partition(model)
    before = jax.tree.map(np.asarray, params)

    def body(total, row):
        return total + combine(graphdef, params, frozen)(row[None]).sum(), None

    total = jax.jit(lambda rows: jax.lax.scan(body, jnp.float32(0), rows)[0])(jnp.asarray(ids))
    np.testing.assert_allclose(total, logits_of(model, ids).sum(), rtol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, before, params)


def test_frozen_weights_are_arguments_not_constants(tiny, ids):
    graphdef, params, frozen = partition(add_lora(tiny(), LoraConfig(rank=2), jax.random.key(0)))
    closed = jax.make_jaxpr(lambda p, f, i: combine(graphdef, p, f)(i))(params, frozen, ids)
    assert sum(np.size(constant) for constant in closed.consts) < 100


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_a_model_that_was_cut_in_two_computes_the_same_in_two_parts(kind, tiny, adapters):
    model = tiny(kind)
    if adapters:
        names = ("c_attn",) if model.config.family == "gpt2" else ("q_proj",)
        model = add_lora(model, LoraConfig(rank=2, targets=names), jax.random.key(0))
    graphdef, params, frozen = partition(model)
    ids = jnp.arange(10, dtype=jnp.int32).reshape(2, 5)
    mask = jnp.asarray([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    lower, upper = (
        combine(graphdef, p, f)
        for p, f in zip(*(cut_layers(tree, 1, model.config.tied) for tree in (params, frozen)), strict=True)
    )
    h = lower.through(lower.embedded(ids, jnp.arange(5, dtype=jnp.int32)), mask)
    logits = upper.head(upper.norm(upper.through(h, mask, first=1)))
    assert (lower.depth, upper.depth) == (1, model.config.layers - 1)
    np.testing.assert_allclose(logits[mask], model(ids, mask)[mask], rtol=1e-5, atol=1e-5)


def test_a_cut_leaves_layers_on_both_sides(tiny):
    model = tiny()
    _, params, _ = partition(model)
    for at in (0, model.config.layers):
        with pytest.raises(ModelError, match="without layers"):
            cut_layers(params, at, tied=True)
