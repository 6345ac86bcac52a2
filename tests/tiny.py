"""A model, tokenizer and data small enough to train in seconds, as files a configuration can name.

A plugin of pytest. It is loaded for every test, so what it needs of the package is imported where it is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import pytest
import yaml
from jax.core import Tracer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from greats_jax.training.events import Event
    from greats_jax.training.result import RunResult

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
def compilations(tmp_path_factory) -> Iterator[Path]:
    """Keeps compiled programs on disk for the session, for this process and for those it starts."""
    folder = tmp_path_factory.mktemp("compilations")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
        del os.environ[name.upper()]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, compilations) -> Path:
    """A random two-layer Llama with its tokenizer, as a Hugging Face folder."""
    from greats_jax.models import Decoder, DecoderConfig, save_pretrained

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


def tiny_config(model: Path, data: Path, output: Path) -> str:
    """A configuration that trains the tiny model for three steps.

    The rate is constant so that the compiled step does not depend on the number of steps: tests then share it.
    """
    return yaml.safe_dump(
        {
            "model": str(model),
            "data": {"sources": [f"{data}/copy.jsonl", f"{data}/noise.jsonl"], "max_length": 32, "buckets": 1},
            "task": {"name": "examples", "path": f"{data}/validation.jsonl", "test_path": f"{data}/test.jsonl"},
            "lora": {"rank": 2, "alpha": 4},
            "mesh": {"data": 1},
            "batch": 6,
            "keep": 3,
            "steps": 3,
            "optimizer": {"learning_rate": 0.01, "schedule": "constant", "warmup": 0},
            "output": str(output),
        }
    )


@pytest.fixture
def config_file(tiny_model, tiny_data, tmp_path) -> Path:
    """The configuration above, into the folder `run` of the test."""
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(tiny_model, tiny_data, tmp_path / "run"))
    return path


class Recording:
    """A tracker that keeps what it is told."""

    def __init__(self):
        self.events: list[Event] = []
        self.closed = 0

    def record(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1


class FinishedRun(NamedTuple):
    """A run, what its tracker saw, and the order in which steps were dispatched and read."""

    result: RunResult
    tracker: Recording
    order: list[str]


@pytest.fixture(scope="session")
def finished_run(tiny_model, tiny_data, tmp_path_factory) -> FinishedRun:
    """One finished run of the tiny configuration, to be looked at and not changed."""
    from greats_jax.training import programs, recording, trainer
    from greats_jax.training.config_loading import load_config

    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(tiny_config(tiny_model, tiny_data, folder / "run"))
    tracker, order = Recording(), []
    make = programs.configured_step

    def watched(*arguments, **settings):
        step = make(*arguments, **settings)

        def dispatch(state, *inputs):
            if not isinstance(state.step, Tracer):  # to count its FLOPs the step is traced, which runs nothing
                order.append("dispatch")
            return step(state, *inputs)

        return dispatch

    def read(metrics):
        order.append("read")
        return jax.tree.map(np.asarray, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "configured_step", watched)
        patch.setattr(recording, "_read", read)
        config = load_config(folder / "tiny.yaml", ["evaluate_every=2"])
        result = trainer.Trainer(config, trackers=[tracker]).fit()
    return FinishedRun(result, tracker, order)
