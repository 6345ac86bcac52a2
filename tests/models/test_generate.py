"""Generation with a cache against running the whole sequence again for every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from greats_jax.errors import ModelError
from greats_jax.models import LoraConfig, add_lora, combine, merge_lora, partition
from greats_jax.models.generate import _begin, _extend, generate
from greats_jax.models.quantized import quantised

# Differ from qwen2, some of whose layers have a window, in nothing that a cache sees.
ALIKE = ("llama", "mistral", "qwen3", "smollm2")
PROMPTS = [[5, 17, 3], [9, 2, 44, 31, 8, 7, 1, 1, 20], [40]]


def without_cache(model, prompt, steps, logits_of):
    """Greedy tokens from full forward passes over right-padded sequences of one length."""
    tokens = list(prompt)
    for _ in range(steps):
        row = np.zeros((1, 24), np.int32)
        row[0, : len(tokens)] = tokens
        logits = logits_of(model, row, np.arange(24)[None] < len(tokens))
        tokens.append(int(logits[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ALIKE)])
def test_greedy_tokens_are_those_without_a_cache(kind, tiny, logits_of):
    model = tiny(kind)
    found = generate(model, PROMPTS, max_new_tokens=9, eos_token_ids=())
    assert found == [without_cache(model, prompt, 9, logits_of) for prompt in PROMPTS]
    assert len({token for row in found for token in row}) > 3, "too monotonous to tell anything"


def test_the_side_of_padding_does_not_matter(tiny):
    model = tiny()
    expected = generate(model, PROMPTS, max_new_tokens=5, eos_token_ids=())
    right, mask = np.full((3, 9), 50), np.arange(9)[None] < np.array([[3], [9], [1]])
    right[mask] = [token for prompt in PROMPTS for token in prompt]
    left = np.full((3, 9), 50)
    left[mask[:, ::-1]] = right[mask]
    assert generate(model, right, mask, max_new_tokens=5, eos_token_ids=()) == expected
    assert generate(model, left, mask[:, ::-1].astype(int), max_new_tokens=5, eos_token_ids=()) == expected


def test_a_row_ends_at_its_stop_and_the_others_go_on(tiny):
    model = tiny()
    free = generate(model, PROMPTS, max_new_tokens=9, eos_token_ids=())
    stop = free[0][3]
    expected = [row[: row.index(stop)] if stop in row else row for row in free]
    assert generate(model, PROMPTS, max_new_tokens=9, eos_token_ids=(stop,)) == expected
    assert {len(row) for row in expected} != {9}


def test_the_models_own_stops_are_the_default(tiny):
    free = generate(tiny(), PROMPTS, max_new_tokens=6, eos_token_ids=())
    stopping = tiny(eos_token_ids=(free[1][2],))
    assert generate(stopping, [PROMPTS[1]], max_new_tokens=6) == [free[1][: free[1].index(free[1][2])]]


def test_draws_follow_the_softmax_and_the_seed(tiny, logits_of):
    model = tiny()
    rows = [[7, 3]] * 1000
    tokens = [row[0] for row in generate(model, rows, max_new_tokens=1, temperature=0.7, seed=3, eos_token_ids=())]
    expected = np.asarray(jax.nn.softmax(logits_of(model, np.array([[7, 3]]))[0, -1] / 0.7))
    assert np.abs(np.bincount(tokens, minlength=61) / 1000 - expected).max() < 0.05
    few = {"max_new_tokens": 8, "temperature": 1.0, "eos_token_ids": ()}
    assert generate(model, PROMPTS, seed=1, **few) == generate(model, PROMPTS, seed=1, **few)
    assert generate(model, PROMPTS, seed=1, **few) != generate(model, PROMPTS, seed=2, **few)


def test_adapters_take_part(tiny):
    graphdef, params, frozen = partition(add_lora(tiny(), LoraConfig(rank=2), jax.random.key(0)))
    adapted = combine(graphdef, jax.tree.map(lambda leaf: leaf + 0.3, params), frozen)
    found = generate(adapted, PROMPTS, max_new_tokens=6, eos_token_ids=())
    assert found == generate(merge_lora(adapted), PROMPTS, max_new_tokens=6, eos_token_ids=())
    assert found != generate(tiny(), PROMPTS, max_new_tokens=6, eos_token_ids=())


def programs() -> int:
    """How many programs have been compiled."""
    return sum(getattr(f, "_cache_size")() for f in (_begin, _extend))  # noqa: B009 - jax's stubs leave it out


def test_lengths_share_programs(tiny):
    model = tiny()
    before = programs()
    for length, new in ((3, 5), (9, 12), (16, 16)):
        generate(model, [[1] * length, [2]], max_new_tokens=new, eos_token_ids=(13, 14))
    assert programs() <= before + 2


def many_prompts(count: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(1, 60, rng.integers(1, 17)).tolist() for _ in range(count)]


def test_many_prompts_in_batches_are_continued_as_one_by_one(tiny):
    model, prompts = tiny(), many_prompts(11)
    settings = {"max_new_tokens": 6, "eos_token_ids": (13,)}
    before = programs()
    found = generate(model, prompts, batch=4, **settings)
    assert programs() <= before + 2, "the last batch, of three, has a program of its own"
    assert found == [generate(model, [prompt], batch=4, **settings)[0] for prompt in prompts]
    assert generate(model, [], batch=4, **settings) == []


def test_a_row_ends_where_the_host_sees_it_and_the_others_go_on(tiny):
    model, prompts, asked = tiny(), many_prompts(5), []
    free = generate(model, prompts, max_new_tokens=40, eos_token_ids=(), batch=3)

    def ended(tokens: list[int]) -> bool:
        asked.append(len(tokens))
        return tokens[:3] == free[2][:3]

    found = generate(model, prompts, max_new_tokens=40, eos_token_ids=(), batch=3, ended=ended)
    assert found == [row[:16] if row[:3] == free[2][:3] else row for row in free]
    assert set(asked) == {16, 32, 40}


def test_a_caller_may_end_the_work_between_batches(tiny):
    calls = []

    def check(done: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        generate(tiny(), many_prompts(11), max_new_tokens=4, batch=2, check=check)
    assert calls == [0, 2, 4]


@pytest.mark.slow
def test_on_a_mesh_as_on_one_device(tiny, on_mesh):
    model, prompts = tiny(), many_prompts(6)
    settings = {"max_new_tokens": 20, "eos_token_ids": (13,), "ended": lambda tokens: 7 in tokens}
    assert generate(on_mesh(model), prompts, batch=3, **settings) == generate(model, prompts, **settings)


@pytest.mark.slow
def test_a_quantised_base_takes_part(tiny, logits_of):
    pytest.importorskip("qwix")
    model = quantised(tiny(), "int8")
    found = generate(model, PROMPTS, max_new_tokens=9, batch=2, eos_token_ids=())
    assert found == [without_cache(model, prompt, 9, logits_of) for prompt in PROMPTS]


def test_a_prompt_may_fill_the_model(tiny):
    # 64 positions: padding to a power of two must not pass the learned ones.
    model = tiny("gpt2", max_length=40)
    assert len(generate(model, [[1] * 35], max_new_tokens=5, eos_token_ids=())[0]) == 5


def test_bfloat16(tiny):
    model = tiny(dtype="bfloat16", compute_dtype="bfloat16")
    assert [len(row) for row in generate(model, PROMPTS, max_new_tokens=4, eos_token_ids=())] == [4, 4, 4]
    assert jnp.bfloat16 == model.embed.dtype


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no tokens"),
        ([[1], []], {}, "no tokens"),
        ([[61]], {}, "prompt token 61 is not in the vocabulary of 61"),
        ([[-1]], {}, "prompt token -1"),
        ([[1] * 60], {"max_new_tokens": 5}, "60 tokens and 5 new ones pass its 64"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ([[1]], {"temperature": -1.0}, "temperature is -1.0"),
        ([[1]], {"temperature": float("nan")}, "temperature is nan"),
        (np.ones((2, 3), int), {"attention_mask": np.ones((2, 2))}, "must have one shape"),
        (np.ones((1, 3), int), {"attention_mask": np.zeros((1, 3))}, "no tokens"),
    ],
)
def test_what_cannot_be_continued_is_refused(prompts, options, message, tiny):
    with pytest.raises(ModelError, match=message):
        generate(tiny(), prompts, **{"max_new_tokens": 4, **options})
