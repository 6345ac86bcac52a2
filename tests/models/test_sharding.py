"""How parameters are cut over a mesh, from their names and shapes."""

from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec as P

from greats_jax.models import Decoder, DecoderConfig, LoraConfig, add_lora, partition
from greats_jax.models.families import FAMILIES
from greats_jax.models.sharding import partition_specs

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "width": 16,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 4,
    "ffn_width": 24,
}
MESH = {"data": 2, "fsdp": 2, "tensor": 2}


def specs(family: str, mesh: dict[str, int], lora: bool = False):
    own: dict[str, Any] = {"rope": None, "qkv_bias": True, "mlp_bias": True} if family == "gpt2" else {"tied": False}
    config = DecoderConfig(family=family, max_length=32, **SHAPE, **own)
    model = Decoder(config, jax.random.key(0))
    targets = ("c_attn", "mlp.c_proj") if family == "gpt2" else ("q_proj", "o_proj")
    model = add_lora(model, LoraConfig(rank=2, targets=targets), jax.random.key(1)) if lora else model
    _, params, frozen = partition(model)
    return partition_specs(config, params, mesh), partition_specs(config, frozen, mesh), params


def test_kernels_are_cut_along_width_for_storage_and_heads_for_computation():
    params = specs("llama", MESH)[0]
    attention, mlp = params["layers"]["self_attn"], params["layers"]["mlp"]
    assert attention["q_proj"]["kernel"] == P(None, "fsdp", "tensor")
    assert attention["o_proj"]["kernel"] == P(None, "tensor", "fsdp")
    assert mlp["gate_proj"]["kernel"] == P(None, "fsdp", "tensor")
    assert mlp["down_proj"]["kernel"] == P(None, "tensor", "fsdp")
    assert params["embed"] == params["lm_head"] == P("tensor", "fsdp")
    assert params["norm"]["scale"] == P(None)


def test_adapters_are_cut_like_the_kernel_they_touch():
    params = specs("llama", MESH, lora=True)[0]
    q, o = (params["layers"]["self_attn"][name]["lora"] for name in ("q_proj", "o_proj"))
    assert (q["a"], q["b"]) == (P(None, "fsdp", None), P(None, None, "tensor"))
    assert (o["a"], o["b"]) == (P(None, "tensor", None), P(None, None, "fsdp"))


def test_no_cut_runs_through_a_head():
    attention = specs("llama", {"data": 1, "fsdp": 1, "tensor": 4})[0]["layers"]["self_attn"]
    assert attention["q_proj"]["kernel"] == P(None, None, "tensor")
    assert attention["k_proj"]["kernel"] == P(None, None, None)  # two heads of keys for four devices


def test_an_axis_that_cannot_be_cut_evenly_stays_whole():
    params = specs("llama", {"data": 1, "fsdp": 3, "tensor": 1})[0]
    assert params["embed"] == P(None, None)
    assert params["layers"]["mlp"]["gate_proj"]["kernel"] == P(None, None, None)


def test_fused_projections_are_not_cut_between_queries_and_keys():
    params = specs("gpt2", MESH)[0]
    attention = params["layers"]["attn"]
    assert attention["c_attn"]["kernel"] == P(None, "fsdp", None)
    assert attention["c_proj"]["kernel"] == P(None, "tensor", "fsdp")
    assert params["layers"]["mlp"]["c_proj"]["kernel"] == P(None, "tensor", "fsdp")
    assert params["layers"]["mlp"]["c_fc"]["bias"] == P(None, "tensor")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_every_family_is_in_the_table(family):
    found, _, params = specs(family, MESH)
    for (path, spec), leaf in zip(
        jax.tree_util.tree_flatten_with_path(found, is_leaf=lambda x: isinstance(x, P))[0],
        jax.tree.leaves(params),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        if leaf.ndim == 3 or (leaf.ndim == 2 and "layers" not in name):
            assert any(axis is not None for axis in spec), name
