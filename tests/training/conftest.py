"""A model, tokenizer and data small enough to train in a second, as files a configuration can name."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from greats_jax.models import Decoder, DecoderConfig, save_pretrained

WORDS = ["red", "blue", "green", "one", "two", "three", "cat", "dog", "bird", "say", "count", "name"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% if m.role == 'assistant' %}<end> {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, with a chat template."""
    special = ["<pad>", "<end>", "<unk>", "<user>", "<assistant>", "<system>"]
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<end>", pad_token="<pad>", unk_token="<unk>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A random two-layer Llama with its tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = word_tokenizer()
    config = DecoderConfig(
        family="llama", vocab_size=len(tokenizer), width=16, layers=2, heads=2, kv_heads=1, head_dim=8, ffn_width=32,
        max_length=128, tied=True, eos_token_ids=(1,), pad_token_id=0,
    )  # fmt: skip
    model = Decoder(config, jax.random.key(0))
    save_pretrained(model, folder)
    tokenizer.save_pretrained(folder)
    return folder


def record(skill: str, rng: np.random.Generator) -> dict:
    """A conversation whose answer repeats a word of the question, or is noise."""
    word = str(rng.choice(WORDS[:6]))
    answer = word if skill == "copy" else str(rng.choice(WORDS[6:9]))
    question = "say " * int(rng.integers(1, 9)) + word
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_records(path: Path, skill: str, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    path.write_text("".join(json.dumps(record(skill, rng)) + "\n" for _ in range(count)))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Two sources of conversations and the files of a target task."""
    folder = tmp_path_factory.mktemp("data")
    write_records(folder / "copy.jsonl", "copy", 40, seed=1)
    write_records(folder / "noise.jsonl", "noise", 40, seed=2)
    write_records(folder / "validation.jsonl", "copy", 4, seed=3)
    write_records(folder / "test.jsonl", "copy", 6, seed=4)
    return folder


@pytest.fixture
def config_file(tiny_model, tiny_data, tmp_path) -> Path:
    """A configuration that trains the tiny model for a few steps into `run` of the test's folder."""
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""
model: {tiny_model}
data:
  sources: [{tiny_data}/copy.jsonl, {tiny_data}/noise.jsonl]
  max_length: 32
  buckets: 2
task:
  name: examples
  path: {tiny_data}/validation.jsonl
  test_path: {tiny_data}/test.jsonl
lora: {{rank: 2, alpha: 4}}
batch: 6
keep: 3
steps: 4
optimizer: {{learning_rate: 1e-2, warmup: 0}}
output: {tmp_path}/run
"""
    )
    return path
