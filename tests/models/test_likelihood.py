"""Log-likelihoods of continuations against the softmax of plain forward passes."""

import jax
import numpy as np
import pytest

from greats_jax.errors import ModelError
from greats_jax.models import LoraConfig, add_lora, combine, merge_lora, partition
from greats_jax.models.likelihood import _scores, continuation_log_likelihoods
from greats_jax.models.quantized import quantised

PROMPTS = [[5, 17, 3], [9, 2, 44, 31, 8, 7, 1, 1, 20], [40], [5, 17, 3], [5, 17, 3], [7] * 20]
CONTINUATIONS = [[4], [3, 3, 9], [11, 12, 13, 14, 15, 16, 17], [6], [4, 8], [1, 2]]


def plainly(model, prompt, continuation, logits_of) -> tuple[float, bool]:
    """One row, one log-softmax in NumPy; rows share a length, so that they share a program."""
    size = len(prompt) + len(continuation)
    row = np.zeros((1, 32 if size <= 32 else size), np.int32)
    row[0, :size] = [*prompt, *continuation]
    logits = logits_of(model, row, np.arange(row.shape[1])[None] < size)[0].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    places = np.arange(len(prompt) - 1, size - 1)
    return log_p[places, continuation].sum(), bool((log_p[places].argmax(1) == continuation).all())


def assert_as_plainly(model, logits_of, **settings):
    sums, greedy = continuation_log_likelihoods(model, PROMPTS, CONTINUATIONS, **settings)
    expected = [plainly(model, *pair, logits_of) for pair in zip(PROMPTS, CONTINUATIONS, strict=True)]
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, [value for value, _ in expected], rtol=2e-6)
    assert greedy.tolist() == [likeliest for _, likeliest in expected]


@pytest.mark.parametrize("kind", [pytest.param("gpt2", marks=pytest.mark.slow), "qwen2"])
def test_sums_are_those_of_the_log_softmax(kind, tiny, logits_of):
    assert_as_plainly(tiny(kind), logits_of, batch=4)


def test_the_likeliest_continuation_is_called_so(tiny, logits_of):
    model, tokens = tiny(), list(PROMPTS[1])
    for _ in range(3):
        row = np.pad([tokens], ((0, 0), (0, 12 - len(tokens))))
        logits = logits_of(model, row, np.arange(12)[None] < len(tokens))
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    likeliest, other = tokens[-3:], [*tokens[-3:-1], (tokens[-1] + 1) % 61]
    _, greedy = continuation_log_likelihoods(model, [PROMPTS[1]] * 2, [likeliest, other])
    assert greedy.tolist() == [True, False]


def test_long_continuations_are_taken_in_slices(tiny, logits_of):
    model = tiny(max_length=300)
    row = np.random.default_rng(0).integers(1, 60, 201).tolist()
    sums, _ = continuation_log_likelihoods(model, [row[:1], row[:150]], [row[1:], row[150:]])
    expected = [plainly(model, row[:1], row[1:], logits_of)[0], plainly(model, row[:150], row[150:], logits_of)[0]]
    np.testing.assert_allclose(sums, expected, rtol=2e-6)


def test_choices_of_one_token_share_a_row(tiny, monkeypatch):
    seen = []

    def counted(graphdef, params, frozen, ids, first, labels):
        seen.append((ids.shape, labels.shape))
        return _scores(graphdef, params, frozen, ids, first, labels)

    monkeypatch.setattr("greats_jax.models.likelihood._scores", counted)
    prompts = [prompt for prompt in PROMPTS[:3] for _ in "ABCD"]
    letters = [[letter] for _ in PROMPTS[:3] for letter in (10, 11, 12, 13)]
    together, _ = continuation_log_likelihoods(tiny(), prompts, letters)
    assert seen == [((3, 16), (3, 1, 4))]
    apart = [continuation_log_likelihoods(tiny(), [p], [c])[0][0] for p, c in zip(prompts, letters, strict=True)]
    np.testing.assert_allclose(together, apart, rtol=1e-6)


def test_lengths_share_programs(tiny):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 60, length).tolist() for length in range(1, 31)]
    before = getattr(_scores, "_cache_size")()  # noqa: B009 - jax's stubs leave it out
    continuation_log_likelihoods(tiny(), prompts, [[1, 2]] * len(prompts), batch=7)
    assert getattr(_scores, "_cache_size")() <= before + 3  # noqa: B009 - 16, 24, 32


@pytest.mark.slow
def test_on_a_mesh_as_on_one_device(tiny, on_mesh):
    found = continuation_log_likelihoods(on_mesh(tiny()), PROMPTS, CONTINUATIONS, batch=3)
    expected = continuation_log_likelihoods(tiny(), PROMPTS, CONTINUATIONS)
    np.testing.assert_allclose(found[0], expected[0], rtol=2e-6)
    np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.slow
def test_adapters_take_part(tiny):
    graphdef, params, frozen = partition(add_lora(tiny(), LoraConfig(rank=2), jax.random.key(0)))
    adapted = combine(graphdef, jax.tree.map(lambda leaf: leaf + 0.3, params), frozen)
    found, _ = continuation_log_likelihoods(adapted, PROMPTS, CONTINUATIONS)
    np.testing.assert_allclose(
        found, continuation_log_likelihoods(merge_lora(adapted), PROMPTS, CONTINUATIONS)[0], rtol=1e-4
    )
    assert np.abs(found - continuation_log_likelihoods(tiny(), PROMPTS, CONTINUATIONS)[0]).min() > 0.01


@pytest.mark.slow
def test_a_quantised_base_takes_part(tiny, logits_of):
    pytest.importorskip("qwix")
    assert_as_plainly(quantised(tiny(), "nf4"), logits_of)


def test_nothing_asked(tiny):
    sums, greedy = continuation_log_likelihoods(tiny(), [], [])
    assert sums.shape == greedy.shape == (0,)


@pytest.mark.parametrize(
    ("prompt", "continuation", "message"),
    [
        ([], [1], "prompt 0 has no tokens"),
        ([1], [], "continuation 0 has no tokens"),
        ([1] * 60, [1] * 6, "60 tokens and its continuation 6, which pass the model's 64"),
        ([1], [61], "token 61 is not in the vocabulary of 61"),
        ([-1], [1], "token -1"),
    ],
)
def test_what_cannot_be_scored_is_refused(prompt, continuation, message, tiny):
    with pytest.raises(ModelError, match=message):
        continuation_log_likelihoods(tiny(), [prompt], [continuation])


def test_a_continuation_may_reach_one_past_the_positions(tiny):
    # The last token is predicted and never read.
    assert np.isfinite(continuation_log_likelihoods(tiny("gpt2"), [[1] * 60], [[1] * 5])[0]).all()
