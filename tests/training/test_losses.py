"""The language-model loss of one example against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from greats_jax.data import LanguageBatch
from greats_jax.training import has_labels, label_count, language_rows, masked_mean_nll


def test_the_loss_is_the_mean_over_label_tokens():
    rng = np.random.default_rng(0)
    logits, ids = rng.normal(size=(6, 11)).astype(np.float32), rng.integers(0, 11, 6)
    labels = np.array([True, False, True, True, False, True])
    shifted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.mean([shifted[t - 1, ids[t]] for t in (2, 3, 5)])
    np.testing.assert_allclose(
        masked_mean_nll(jnp.asarray(logits), jnp.asarray(ids), jnp.asarray(labels)), expected, rtol=1e-5
    )


def test_an_example_without_labels_has_loss_zero_and_gradient_zero():
    logits, ids, labels = jnp.ones((4, 5)), jnp.zeros(4, jnp.int32), jnp.asarray([True, False, False, False])
    loss, grad = jax.value_and_grad(masked_mean_nll)(logits, ids, labels)
    assert float(loss) == 0, "the first token cannot be predicted, so it is no label"
    assert not np.any(grad)


def test_rows_carry_their_own_dropout_keys_and_validation_rows_see_none():
    batch = LanguageBatch(np.zeros((3, 4), np.int32), np.ones((3, 4), bool), np.eye(3, 4, 1, bool))
    train, quiet = language_rows(batch, jax.random.key(1)), language_rows(batch)
    assert len({tuple(k) for k in np.asarray(train.dropout_key).tolist()}) == 3
    assert not train.deterministic.any()
    assert quiet.deterministic.all()
    assert jax.tree.map(lambda x: x.dtype, train) == jax.tree.map(lambda x: x.dtype, quiet)


def test_labels_are_counted_after_the_first_token():
    batch = LanguageBatch(np.zeros((2, 3), np.int32), np.ones((2, 3), bool), np.array([[1, 0, 0], [1, 1, 1]], bool))
    rows = language_rows(batch)
    assert jax.vmap(has_labels)(rows).tolist() == [False, True]
    assert jax.vmap(label_count)(rows).tolist() == [0, 2]
