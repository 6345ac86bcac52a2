"""GSM8K: the solution is the label, its number the answer."""

import gzip

import pytest

from greats_jax.errors import TaskError
from greats_jax.tasks import METRICS, TaskConfig
from greats_jax.tasks.gsm8k import load_gsm8k

from .conftest import write_lines


def row(number):
    return {
        "question": f"What is {number} + 1?",
        "answer": f"It is <<{number}+1={number + 1}>>.\n#### 1,{number + 1:03}",
    }


@pytest.fixture
def folder(tmp_path):
    write_lines(tmp_path / "gsm8k" / "train.jsonl", [row(number) for number in range(7)])
    write_lines(tmp_path / "gsm8k" / "test.jsonl", [row(number) for number in range(100, 104)])
    return tmp_path / "gsm8k"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("tulu", "<|user|>\nQuestion: What is 0 + 1?\n<|assistant|>\nAnswer: It is <<0+1=1>>.\n#### 1,001"),
        (
            "chat",
            "<|im_start|>user\nQuestion: What is 0 + 1?<|im_end|>\n<|im_start|>assistant\n"
            "Answer: It is <<0+1=1>>.\n#### 1,001",
        ),
    ],
)
def test_prompt(folder, load, texts, template, text):
    task = load("gsm8k", folder, template)
    assert texts(task.validation)[0] == (text, " It is <<0+1=1>>.\n#### 1,001")
    assert [example.id for example in task.validation] == [f"gsm8k-validation-{number}" for number in range(5)]
    assert [example.id for example in task.test] == [f"gsm8k-test-{number}" for number in range(4)]


def test_benchmark(folder, load):
    benchmark = load("gsm8k", folder, shots=2, n_test=1).benchmark
    (question,) = benchmark.questions
    assert question.user_turn() == (
        "Question: What is 0 + 1?\nAnswer: It is <<0+1=1>>.\n#### 1,001\n\n"
        "Question: What is 1 + 1?\nAnswer: It is <<1+1=2>>.\n#### 1,002\n\n"
        "Question: What is 100 + 1?"
    )
    assert question.opening == "Answer:"
    assert question.answers == ("1101",)
    assert (benchmark.name, benchmark.metric, benchmark.max_new_tokens) == ("gsm8k", "number", 256)
    assert benchmark.stops == ("Question:", "<|user|>")


def test_first_questions_of_a_lone_test_file_are_not_tested(folder, tmp_path, load):
    alone = tmp_path / "gsm8k_test.jsonl.gz"
    alone.write_bytes(gzip.compress((folder / "test.jsonl").read_bytes()))
    task = load("gsm8k", alone, n_validation=1, shots=2)
    assert [example.id for example in task.validation] == ["gsm8k-validation-0"]
    assert [example.id for example in task.test] == ["gsm8k-test-2", "gsm8k-test-3"]
    assert task.benchmark.questions[0].user_turn().count("Question:") == 3
    (folder / "train.jsonl").unlink()
    assert len(load("gsm8k", folder, n_validation=2).test) == 2
    with pytest.raises(TaskError, match=r"holds 4 rows, and 4 are kept for validation and worked examples"):
        load("gsm8k", alone, n_validation=4)


def test_two_files(folder, tmp_path, load):
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    task = load("gsm8k", train, test_path=str(test), n_validation=3)
    assert (len(task.validation), len(task.test)) == (3, 4)
    with pytest.raises(TaskError, match=r"there are only 7 worked examples"):
        load("gsm8k", train, test_path=str(test), shots=8)


def test_hub(load, hub):
    hub({("openai/gsm8k", "main", split): [row(number) for number in range(9)] for split in ("train", "test")})
    task = load("gsm8k", "openai/gsm8k", n_validation=2, n_test=5)
    # The first two questions are the same in both.
    assert [example.id for example in task.test] == [f"gsm8k-test-{number}" for number in (2, 3, 4)]
    assert [question.id for question in task.benchmark.questions] == [example.id for example in task.test]
    assert task.counts == {"test_in_validation": 2}
    hub({("openai/gsm8k", "socratic", split): [row(number) for number in range(9)] for split in ("train", "test")})
    assert len(load("gsm8k", "openai/gsm8k:socratic").validation) == 5


def test_another_test_file_than_that_of_the_hub(load, hub, folder):
    hub({("openai/gsm8k", "main", "train"): [row(number) for number in range(9)]})
    other = write_lines(folder / "other.jsonl", [row(number) for number in (20, 21)])
    assert len(load("gsm8k", "openai/gsm8k", test_path=other).test) == 2
    with pytest.raises(TaskError, match=r"none.jsonl: no such file: correct task.test_path"):
        load("gsm8k", "openai/gsm8k", test_path="none.jsonl")


@pytest.mark.parametrize("answer", ["It is 4.", "It is 4. ####", "#### four"])
def test_solutions_without_a_number(folder, load, answer):
    write_lines(folder / "test.jsonl", [row(1), {"question": "a", "answer": answer}])
    with pytest.raises(TaskError, match=r"line 2: the answer does not end with #### and a number"):
        load("gsm8k", folder)


def test_real_questions(shared):
    material = load_gsm8k(TaskConfig("gsm8k", path=str(shared / "data" / "eval" / "gsm8k_test.jsonl.gz"), n_test=5000))
    assert len(material.benchmark.questions) == 1319 - 5
    for question in material.benchmark.questions:
        assert METRICS["number"](question.reference, question.answers) == {"exact_match": 1, "strict_match": 1}
