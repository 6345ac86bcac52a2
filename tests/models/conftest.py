"""Tiny models of every family, with weights large enough that every part shows in the logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding

from greats_jax.models import Decoder, DecoderConfig, RopeConfig, combine, partition
from greats_jax.models.sharding import partition_specs

BASE = {
    "family": "llama",
    "vocab_size": 61,
    "width": 24,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 6,
    "ffn_width": 40,
    "max_length": 64,
}
LLAMA3 = RopeConfig(500.0, "llama3", 8.0, 1.0, 4.0, 32)
KINDS = {
    "llama": {"rope": LLAMA3},
    "smollm2": {"tied": True},
    "mistral": {"family": "mistral", "windows": (4, 4, 4)},
    "qwen2": {"family": "qwen2", "qkv_bias": True, "windows": (0, 3, 3)},
    "qwen3": {"family": "qwen3", "qk_norm": True, "head_dim": 8, "tied": True},
    "gpt2": {
        "family": "gpt2",
        "rope": None,
        "kv_heads": 4,
        "tied": True,
        "activation": "gelu_tanh",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "eos_token_ids": (60,),
    },
}


def tiny_config(kind: str = "llama", **changes) -> DecoderConfig:
    return DecoderConfig(**{**BASE, **KINDS[kind], **changes})


@functools.cache
def tiny_model(kind: str = "llama", **changes) -> Decoder:
    """A model with weights drawn by NumPy, which compiles nothing; shared by tests, since nothing mutates a model."""
    config = tiny_config(kind, **changes)
    graphdef, shapes = nnx.split(nnx.eval_shape(lambda: Decoder(config, jax.random.key(0))))
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(mean, 0.2, leaf.shape), leaf.dtype)

    params = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(shapes))
    return combine(graphdef, params, {})


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, frozen, ids, mask):
    return combine(graphdef, params, frozen)(ids, mask)


def jitted_logits(model: Decoder, ids, mask=None) -> np.ndarray:
    return np.asarray(_logits(*partition(model), jnp.asarray(ids), mask))


@pytest.fixture(params=sorted(KINDS))
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def tiny():
    return tiny_model


@pytest.fixture(scope="session")
def config_of():
    return tiny_config


@pytest.fixture(scope="session")
def logits_of():
    return jitted_logits


@pytest.fixture(scope="session")
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60, (2, 11)).astype(np.int32)


@pytest.fixture(scope="session")
def on_mesh():
    """Places a model on eight devices: two groups, each of which cuts its storage and its computation in two."""

    def placed(model: Decoder) -> Decoder:
        mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
        graphdef, params, frozen = partition(model)
        params, frozen = (
            jax.tree.map(
                lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)),
                tree,
                partition_specs(model.config, tree, dict(mesh.shape)),
            )
            for tree in (params, frozen)
        )
        model = combine(graphdef, params, frozen)
        model.mesh = mesh
        return model

    return placed
