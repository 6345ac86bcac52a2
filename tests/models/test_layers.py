"""The parts of a layer against their definitions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from greats_jax.models import RopeConfig
from greats_jax.models.layers import (
    Dropout,
    LayerNorm,
    RMSNorm,
    activate,
    causal_attention,
    rotary_frequencies,
    rotate,
)


def reference_attention(q, k, v, key_mask, window):
    b, t, n, h = q.shape
    group = n // k.shape[2]
    out = np.zeros_like(q)
    for row in range(b):
        for head in range(n):
            for i in range(t):
                seen = [j for j in range(i + 1) if key_mask[row, j] and (not window or i - j < window)]
                scores = np.array([q[row, i, head] @ k[row, j, head // group] for j in seen]) / np.sqrt(h)
                weights = np.exp(scores - scores.max())
                out[row, i, head] = weights / weights.sum() @ v[row, seen, head // group]
    return out


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("window", [0, 1, 3])
def test_attention_is_its_definition(window, traced):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 7, 4, 5)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 7, 2, 5)).astype(np.float32)
    mask = np.arange(7)[None] < np.array([[7], [4]])
    given = jnp.int32(window) if traced else window
    ours = np.asarray(causal_attention(q, k, v, jnp.asarray(mask), given))
    theirs = reference_attention(q, k, v, mask | (np.arange(7)[None] >= 4), window)
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    np.testing.assert_allclose(ours[1, :4], theirs[1, :4], atol=1e-5)
    assert np.isfinite(ours).all()


def test_rotation_turns_channel_pairs_by_position_times_frequency():
    x = np.random.default_rng(0).normal(size=(1, 3, 1, 4)).astype(np.float32)
    frequencies = rotary_frequencies(RopeConfig(100.0), 4)
    np.testing.assert_allclose(frequencies, [1.0, 0.1], rtol=1e-6)
    turned = np.asarray(rotate(jnp.asarray(x), jnp.array([0, 5, 9]), frequencies))[0, :, 0]
    pairs = (x[0, :, 0, :2] + 1j * x[0, :, 0, 2:]) * np.exp(1j * np.array([[0], [5], [9]]) * frequencies)
    np.testing.assert_allclose(turned, np.concatenate([pairs.real, pairs.imag], axis=1), atol=1e-5)


def test_attention_scores_depend_on_distance_only():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    frequencies = rotary_frequencies(RopeConfig(), 8)

    def score(i, j):
        return float(jnp.sum(rotate(q, jnp.array([i]), frequencies) * rotate(k, jnp.array([j]), frequencies)))

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_linear_scaling_divides_every_frequency():
    plain = rotary_frequencies(RopeConfig(), 16)
    np.testing.assert_allclose(rotary_frequencies(RopeConfig(kind="linear", factor=4.0), 16), plain / 4, rtol=1e-6)


def test_llama3_scaling_stretches_only_long_wavelengths():
    rope = RopeConfig(500000.0, "llama3", 8.0, 1.0, 4.0, 8192)
    ratio = rotary_frequencies(RopeConfig(500000.0), 128) / rotary_frequencies(rope, 128)
    wavelength = 2 * np.pi / rotary_frequencies(RopeConfig(500000.0), 128)
    np.testing.assert_allclose(ratio[wavelength < 8192 / 4], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[wavelength > 8192], 8.0, rtol=1e-5)
    assert (np.diff(ratio) > -1e-5).all()
    assert ((ratio > 1.01) & (ratio < 7.99)).any(), "no frequency is on the ramp"


def test_norms_are_their_definitions():
    x = np.random.default_rng(0).normal(2.0, 3.0, (2, 5, 8)).astype(np.float32)
    rms = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(RMSNorm((8,), 1e-5, jnp.float32)(jnp.asarray(x)), rms, atol=1e-5)
    centred = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(LayerNorm((8,), 1e-5, jnp.float32)(jnp.asarray(x)), centred, atol=1e-5)


def test_norms_of_bfloat16_are_computed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(300.0, 1.0, (1, 512)), jnp.bfloat16)
    out = LayerNorm((512,), 1e-5, jnp.float32)(x)
    assert out.dtype == jnp.bfloat16
    assert float(jnp.std(out.astype(jnp.float32))) == pytest.approx(1.0, abs=0.02)


def test_activations_are_told_apart():
    x = jnp.linspace(-2, 2, 9)
    values = {name: np.asarray(activate(name, x)) for name in ("silu", "gelu", "gelu_tanh", "relu")}
    np.testing.assert_allclose(values["silu"], x / (1 + np.exp(-x)), atol=1e-6)
    np.testing.assert_allclose(values["relu"], np.maximum(x, 0), atol=0)
    cubic = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    np.testing.assert_allclose(values["gelu_tanh"], 0.5 * x * (1 + np.tanh(cubic)), atol=1e-6)
    assert 1e-5 < np.abs(values["gelu"] - values["gelu_tanh"]).max() < 1e-3


def test_dropout_keeps_the_mean_and_obeys_its_flag():
    x = jnp.ones((200, 200))
    dropped = Dropout(jax.random.key(0))(x, 0.25)
    assert float(jnp.mean(dropped == 0)) == pytest.approx(0.25, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    np.testing.assert_array_equal(Dropout(jax.random.key(0), jnp.array(True))(x, 0.25), x)
    np.testing.assert_array_equal(Dropout(jax.random.key(0), jnp.array(False))(x, 0.25), dropped)
    assert not np.array_equal(Dropout(jax.random.key(0)).fold(1)(x, 0.25), dropped)
