"""A tiny tokenizer for tasks: words, blanks and letters, with a ChatML template; and a pool to train on."""

import json
from typing import Any

import datasets
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from greats_jax.data import DataConfig, SourceConfig, Template, build_pool
from greats_jax.tasks import TaskConfig, load_task


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(
        ["The answer is: A B C D\n", "multiple choice questions (with answers)\n\n"] * 4, trainer
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for message in messages %}"
        "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


@pytest.fixture
def pool(tmp_path, tokenizer):
    path = tmp_path / "pool" / "pool.jsonl"
    path.parent.mkdir()
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    return build_pool(DataConfig(sources=(SourceConfig(str(path)),)), tokenizer)


@pytest.fixture
def load(tokenizer, pool):
    """Loads a task with the template of LESS, or another one."""

    def load(name, path, template: Template = "tulu", max_length=5000, **options):
        config = TaskConfig(name, path=str(path), **options)
        return load_task(config, tokenizer, DataConfig(template=template, max_length=max_length), pool)

    return load


@pytest.fixture
def texts(tokenizer):
    """Text and label of each example."""

    def texts(examples):
        return [
            (tokenizer.decode(example.input_ids), tokenizer.decode(example.input_ids[example.label_mask]))
            for example in examples
        ]

    return texts


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the hub: `hub({("owner/name", "configuration", "split"): rows})`; slices of splits are cut."""

    def hub(tables: dict[tuple[str, str | None, str], list[dict[str, Any]]]):
        def load_dataset(name, configuration, split):
            plain, _, limit = split.partition("[:")
            rows = tables[name, configuration, plain]
            return datasets.Dataset.from_list(rows[: int(limit[:-1])] if limit else rows)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return hub


def write_lines(path, rows):
    """Writes rows as JSON lines; gives the path as a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)
