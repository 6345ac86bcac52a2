"""The ghost engine against vmap(grad) on every model family: full and LoRA, with padding, and under remat."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from greats_jax.ghost import reference, value_and_per_example_grads
from greats_jax.models import Decoder, DecoderConfig, LoraConfig, RopeConfig, add_lora, combine, cut_layers, partition
from greats_jax.training import (
    LanguageExample,
    TrainState,
    language_model_loss,
    make_selective_step,
    split_language_model_loss,
)

SHAPE = {"vocab_size": 61, "width": 16, "layers": 3, "heads": 4, "head_dim": 4, "ffn_width": 24, "max_length": 64}
LLAMA3 = RopeConfig(500.0, "llama3", 8.0, 1.0, 4.0, 32)
FAMILIES = {
    "llama": {"family": "llama", "kv_heads": 2, "rope": LLAMA3},
    "smollm2": {"family": "llama", "kv_heads": 2, "tied": True},
    "mistral": {"family": "mistral", "kv_heads": 2, "windows": (4, 4, 4)},
    "qwen2": {"family": "qwen2", "kv_heads": 2, "qkv_bias": True, "windows": (0, 3, 3)},
    "qwen3": {"family": "qwen3", "kv_heads": 2, "qk_norm": True, "tied": True},
    "gpt2": {
        "family": "gpt2",
        "rope": None,
        "kv_heads": 4,
        "tied": True,
        "activation": "gelu_tanh",
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    },
}
TARGETS = {"gpt2": ("c_attn", "c_proj")}


@functools.cache
def model_of(family: str, lora: bool, remat: str) -> Decoder:
    model = Decoder(DecoderConfig(**SHAPE, **FAMILIES[family], remat=remat), jax.random.key(0))
    if lora:
        targets = TARGETS.get(family, ("q_proj", "k_proj", "v_proj", "o_proj"))
        model = add_lora(model, LoraConfig(rank=2, alpha=4.0, dropout=0.25, targets=targets), jax.random.key(1))
    return model


def rows(n: int, t: int = 7) -> LanguageExample:
    """Rows of different lengths and label spans; the last sees no dropout."""
    rng = np.random.default_rng(3)
    length = rng.integers(3, t + 1, n)
    place = np.arange(t)
    return LanguageExample(
        jnp.asarray(rng.integers(0, 61, (n, t)), jnp.int32),
        jnp.asarray(place < length[:, None]),
        jnp.asarray((place < length[:, None]) & (place >= 1)),
        jax.random.key_data(jax.random.split(jax.random.key(5), n)),
        jnp.arange(n) == n - 1,
    )


def largest_relative_difference(a, b) -> float:
    """Over leaves, largest difference as a share of the leaf's largest entry."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.abs(x - y).max() / jnp.maximum(jnp.abs(y).max(), 1e-12)) for x, y in pairs)


# Rematerialisation does not depend on what is inside a block, so the two architectures that differ most are enough.
DEFAULT = [("llama", "none"), ("gpt2", "full")]
MORE = [(family, "none") for family in FAMILIES if (family, "none") not in DEFAULT] + [("llama", "full")]
CASES = [*DEFAULT, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("family", "remat"), CASES)
def test_losses_gram_and_update_equal_materialised_gradients(family, lora, remat):
    graphdef, params, frozen = partition(model_of(family, lora, remat))
    # Adapters start with B = 0, which would make half of the gradients zero.
    params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    loss_fn = language_model_loss(graphdef, combine, dropout=lora)
    batch, weights = rows(4), jnp.asarray([0.5, 0.0, 2.0, 1.0])

    @jax.jit
    def ours(params, frozen, batch):
        losses, grads = value_and_per_example_grads(loss_fn)(params, frozen, batch)
        return losses, grads.gram(), grads.squared_norms(), grads.weighted_sum(weights)

    @jax.jit
    def slow(params, frozen, batch):
        losses = jax.vmap(loss_fn, in_axes=(None, None, 0))(params, frozen, batch)
        grads = reference.per_example_grads(loss_fn, params, frozen, batch)
        gram = reference.gram(grads)
        return losses, gram, jnp.diagonal(gram), jax.tree.map(lambda g: jnp.tensordot(weights, g, 1), grads)

    with jax.default_matmul_precision("highest"):
        found, expected = ours(params, frozen, batch), slow(params, frozen, batch)
    for part, other in zip(found, expected, strict=True):
        assert largest_relative_difference(part, other) < 1e-5
    assert float(expected[1][0, 0]) > 0


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        pytest.param("llama", True, marks=pytest.mark.slow),
        pytest.param("qwen2", False, marks=pytest.mark.slow),
        pytest.param("gpt2", False, marks=pytest.mark.slow),
    ],
)
def test_a_loss_that_was_cut_is_the_same_loss_with_the_same_update(family, lora):
    model = model_of(family, lora, "none")
    graphdef, params, frozen = partition(model)
    cut = functools.partial(cut_layers, at=1, tied=model.config.tied)
    optimizer = optax.sgd(0.1)

    def after(loss, rule):
        step = make_selective_step(loss, optimizer, rule, keep=4, learning_rate=0.1)
        state, metrics = step(TrainState.create(params, optimizer), frozen, rows(4), rows(2))
        return state.params, metrics

    plain, expected = after(language_model_loss(graphdef, combine, dropout=lora), "regular")
    found, metrics = after(split_language_model_loss(graphdef, combine, cut, 1, dropout=lora), "greats")
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-5)
    change, other = (jax.tree.map(jnp.subtract, p, params) for p in (found, plain))
    assert largest_relative_difference(change, other) < 1e-4


def test_every_weight_matrix_of_a_model_is_factored_or_smaller_than_its_factors():
    graphdef, params, frozen = partition(model_of("llama", False, "none"))
    _, grads = value_and_per_example_grads(language_model_loss(graphdef, combine))(params, frozen, rows(2))
    assert all(row.kind in {"factored", "instantiated", "whole"} for row in grads.explain()), str(grads.explain())
