"""Summaries of dialogues: the prompt of torchtune, from files and hub data sets of the same columns."""

import json
import sys

import pytest

from greats_jax.errors import TaskError
from greats_jax.tasks import metrics

from .conftest import write_lines

DIALOGUE = "Ann: Are you coming?\r\nBob: Yes, at 5."


def row(summary, **more):
    return {"id": "1", "dialogue": DIALOGUE, "summary": summary, **more}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "samsum"
    for split, count in ("train", 9), ("val", 4), ("test", 6):
        write_lines(folder / f"{split}.jsonl", [row(f"{split} {number}.") for number in range(count)])
    return folder


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "tulu",
            "<|user|>\nSummarize this dialogue:\nAnn: Are you coming?\nBob: Yes, at 5.\n---\n"
            "<|assistant|>\nSummary:\nval 0.",
        ),
        (
            "chat",
            "<|im_start|>user\nSummarize this dialogue:\nAnn: Are you coming?\nBob: Yes, at 5.\n---<|im_end|>\n"
            "<|im_start|>assistant\nSummary:\nval 0.",
        ),
    ],
)
def test_prompt(folder, load, texts, template, text):
    task = load("samsum", folder, template, n_validation=2)
    assert texts(task.validation) == [(text, "val 0."), (text.replace("val 0", "val 1"), "val 1.")]
    assert [example.id for example in task.test] == [f"samsum-test-{number}" for number in range(6)]


def test_benchmark(folder, load):
    benchmark = load("samsum", folder, shots=1, n_test=3).benchmark
    assert len(benchmark.questions) == 3
    question = benchmark.questions[2]
    dialogue = "Summarize this dialogue:\nAnn: Are you coming?\nBob: Yes, at 5.\n---"
    assert question.user_turn() == f"{dialogue}\nSummary:\nval 0.\n\n{dialogue}"
    assert question.opening == "Summary:\n"
    assert question.answers == ("test 2.",)
    assert (benchmark.name, benchmark.metric, benchmark.max_new_tokens) == ("samsum", "rouge", 128)
    assert benchmark.stops == ("\n\n", "<|user|>")
    assert load("samsum", folder, max_new_tokens=300).benchmark.max_new_tokens == 300


def test_hub(load, hub):
    hub({("knkarthick/samsum", None, "validation"): [row("v 0"), row("v 1")],
         ("knkarthick/samsum", None, "test"): [row("t 0"), row("t 1")]})  # fmt: skip
    task = load("samsum", "knkarthick/samsum", n_validation=1, n_test=1)
    assert len(task.validation) == len(task.test) == 1
    assert task.benchmark.questions[0].answers == ("t 0",)


def test_files_of_other_kinds(tmp_path, load):
    (tmp_path / "corpus" / "a").mkdir(parents=True)
    (tmp_path / "corpus" / "a" / "train.json").write_text(json.dumps([row("train")]))
    (tmp_path / "corpus" / "test-00000-of-00001.csv").write_text("dialogue,summary\nAnn: Hi,She says hi\n")
    task = load("samsum", tmp_path / "corpus", n_validation=1)
    assert task.benchmark.questions[0].answers == ("She says hi",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"dialogue": "a"}, r"line 1: the field 'summary' is missing: the fields are dialogue"),
        ({"dialogue": ["a"], "summary": "b"}, r"line 1: the field 'dialogue' is list, not text"),
    ],
)
def test_other_columns(folder, load, line, message):
    write_lines(folder / "test.jsonl", [line])
    with pytest.raises(TaskError, match=message):
        load("samsum", folder)


def test_missing_package_is_said_before_anything_is_trained(folder, load, monkeypatch):
    metrics._rouge_scorer.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(TaskError, match="pip install rouge-score"):
        load("samsum", folder)
