"""Models whose frozen linear maps have 8 or 4 bits, and the adapters that train on them."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from greats_jax.errors import ModelError
from greats_jax.ghost import value_and_per_example_grads
from greats_jax.models import LoraConfig, add_lora, combine, from_pretrained, merge_lora, partition, save_pretrained
from greats_jax.models.quantized import quantised

needs_qwix = pytest.mark.skipif(importlib.util.find_spec("qwix") is None, reason="needs the extra quantize")
WIDE = {"width": 64, "head_dim": 16, "ffn_width": 128}


def leaves(model) -> dict:
    return {jax.tree_util.keystr(path): x for path, x in jax.tree.leaves_with_path(partition(model)[1])}


def adapted(model):
    """Adapters whose B is not zero, so that both of their parts have a gradient."""
    model = add_lora(model, LoraConfig(rank=2, targets=("all-linear",)), jax.random.key(1))
    graphdef, params, frozen = partition(model)
    return graphdef, jax.tree.map(lambda x: x + 0.1, params), frozen


@needs_qwix
@pytest.mark.parametrize(
    ("kind", "bits", "error"),
    [("int8", 8, 0.004), pytest.param("int4", 4, 0.07, marks=pytest.mark.slow), ("nf4", 4, 0.16)],
)
def test_only_kernels_are_quantised_and_within_half_a_step(kind, bits, error, tiny):
    before, after = leaves(tiny(**WIDE)), leaves(quantised(tiny(**WIDE), kind))
    numbers = {name: x for name, x in after.items() if name.endswith(".qvalue")}
    assert len(numbers) == 7
    assert {jnp.iinfo(x.dtype).bits for x in numbers.values()} == {bits}
    for name in before:
        if name in after:
            assert after[name] is before[name]
    # Merging without adapters turns the kernels back.
    back = leaves(merge_lora(quantised(tiny(**WIDE), kind)))
    kernel = "['layers']['mlp']['up_proj']['kernel']"
    tiles = np.abs(before[kernel]).max(axis=1, keepdims=True)  # one tile of 64 inputs
    assert back.keys() == before.keys()
    assert (np.abs(back[kernel] - before[kernel]) <= error * tiles + 1e-6).all()
    assert (np.abs(back[kernel] - before[kernel]) > 0).any()


@needs_qwix
@pytest.mark.parametrize("kind", ["nf4", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("int8", "int4"))])
def test_adapters_learn_as_on_the_model_turned_back(kind, tiny, ids):
    quantised_parts = adapted(quantised(tiny(**WIDE), kind))
    dense_parts = adapted(merge_lora(quantised(tiny(**WIDE), kind)))

    def per_example(parts):
        graphdef, params, frozen = parts

        def loss(params, frozen, row):
            logits = combine(graphdef, params, frozen)(row[None])[0]
            return -jax.nn.log_softmax(logits)[:-1][jnp.arange(len(row) - 1), row[1:]].mean()

        @jax.jit
        def program(params, frozen, rows):
            losses, grads = value_and_per_example_grads(loss)(params, frozen, rows)
            return losses, grads.gram(), grads.weighted_sum(jnp.ones(len(rows)))

        return program(params, frozen, jnp.asarray(ids))

    ours, theirs = per_example(quantised_parts), per_example(dense_parts)
    assert float(ours[1].min()) != 0
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), ours, theirs)


@needs_qwix
@pytest.mark.parametrize("kind", [pytest.param("int8", marks=pytest.mark.slow), "nf4"])
def test_kernels_are_quantised_while_they_are_read(kind, tiny, tmp_path):
    save_pretrained(tiny(**WIDE), tmp_path)
    expected = leaves(quantised(tiny(**WIDE), kind))
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def spread(shapes):
        return jax.tree.map(lambda x: NamedSharding(mesh, PartitionSpec(*(None,) * (x.ndim - 1), "fsdp")), shapes)

    for shardings in (None, spread):
        found = leaves(from_pretrained(tmp_path, shardings=shardings, quantize=kind))
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@needs_qwix
def test_shards_may_cut_through_tiles(tiny, tmp_path):
    save_pretrained(tiny(**WIDE), tmp_path)
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))

    def spread(shapes):
        def place(x):
            cut = x.ndim == 3 and x.shape[1] % 8 == 0
            return NamedSharding(mesh, PartitionSpec(None, "fsdp") if cut else PartitionSpec())

        return jax.tree.map(place, shapes)

    found = leaves(from_pretrained(tmp_path, shardings=spread, quantize="int4"))
    expected = leaves(quantised(tiny(**WIDE), "int4"))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@needs_qwix
def test_a_quantised_model_is_saved_once_it_is_merged(tiny, tmp_path):
    model = quantised(tiny(**WIDE), "int8")
    with pytest.raises(ModelError, match="merge_lora"):
        save_pretrained(model, tmp_path)
    save_pretrained(merge_lora(model), tmp_path)


@needs_qwix
def test_an_unknown_kind_is_refused(tiny):
    with pytest.raises(ModelError, match="'int3' is not supported: use one of int8, int4, nf4"):
        quantised(tiny(), "int3")


def test_without_qwix_the_extra_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ModelError, match=r"pip install 'greats-jax\[quantize\]'"):
        quantised(tiny(), "int8")
