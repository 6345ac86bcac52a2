"""One's own questions: every field and metric, and every fault with its line."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greats_jax.errors import TaskError
from greats_jax.tasks import Benchmark, TaskConfig
from greats_jax.tasks.own_questions import load_own_questions

from .conftest import write_lines

ROWS = [{"prompt": f"Capital of {number}?", "answer": f"City {number}"} for number in range(8)]


@pytest.fixture
def path(tmp_path):
    return write_lines(tmp_path / "mine.jsonl", ROWS)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("tulu", "<|user|>\nCapital of 0?\n<|assistant|>\nCity 0"),
        ("chat", "<|im_start|>user\nCapital of 0?<|im_end|>\n<|im_start|>assistant\nCity 0"),
    ],
)
def test_prompt(path, load, texts, template, text):
    task = load("questions", path, template, n_validation=3)
    assert texts(task.validation)[0] == (text, "City 0")
    assert task.name == "questions-mine"
    assert [example.id for example in task.validation] == [f"questions-validation-{number}" for number in range(3)]
    assert [example.id for example in task.test] == [f"questions-test-{number}" for number in range(3, 8)]


def test_benchmark(path, load):
    benchmark = load("questions", path, shots=2, n_validation=1).benchmark
    assert isinstance(benchmark, Benchmark)
    question = benchmark.questions[0]
    assert question.user_turn() == "Capital of 0?\nCity 0\n\nCapital of 1?\nCity 1\n\nCapital of 2?"
    assert question.answers == ("City 2",)
    assert (benchmark.metric, benchmark.max_new_tokens, benchmark.stops) == ("exact", 64, ("<|user|>",))
    for metric in ("contains", "f1", "rouge"):
        assert load("questions", path, metric=metric, max_new_tokens=7).benchmark[2:4] == (metric, 7)


def test_every_field(tmp_path, load, texts):
    path = write_lines(
        tmp_path / "mine.jsonl",
        [
            {"id": "x", "prompt": "2 + 2?", "answers": [4, "four"], "group": "sums", "opening": "Answer:"},
            {"prompt": "3 + 3?", "answer": 6, "opening": "It is\n", "group": None, "choices": None},
        ],
    )
    task = load("questions", path, n_validation=1)
    assert texts(task.validation) == [("<|user|>\n2 + 2?\n<|assistant|>\nAnswer: 4", " 4")]
    assert (task.validation[0].id, task.validation[0].source) == ("x", "questions-mine-sums")
    assert texts(task.test) == [("<|user|>\n3 + 3?\n<|assistant|>\nIt is\n6", "6")]
    assert task.benchmark.questions[0].answers == ("6",)


def test_choices(tmp_path, load, texts):
    rows = [
        {"prompt": "Sky?", "choices": ["red", "blue"], "answer": "blue", "opening": "It is"},
        {"prompt": "Grass?", "choices": ["green", "blue"], "answer": 0},
        {"prompt": "Sea?", "choices": ["green", "blue", "red"], "answers": ["green", "blue"], "opening": "It is"},
    ]
    path = write_lines(tmp_path / "mine.jsonl", rows)
    task = load("questions", path, n_validation=1)
    assert texts(task.validation) == [("<|user|>\nSky?\n<|assistant|>\nIt is blue", " blue")]
    grass, sea = task.benchmark.questions
    assert (grass.choices, grass.answers) == (("green", "blue"), ("green",))
    assert (sea.choices, sea.answers) == ((" green", " blue", " red"), (" green", " blue"))
    assert (task.benchmark.metric, task.benchmark.max_new_tokens, task.benchmark.stops) == ("choice", 0, ())
    # With another metric the model writes its answer, and the choices are not used.
    written = load("questions", path, n_validation=1, metric="contains").benchmark
    assert written.questions[1].choices == ()
    assert written.questions[1].answers == ("green", "blue")


def test_test_file(path, tmp_path, load):
    test = write_lines(tmp_path / "test.jsonl", [ROWS[0], {"prompt": "Capital of x?", "answer": "City x"}])
    task = load("questions", path, test_path=test)
    assert len(task.validation) == 5
    assert [example.id for example in task.test] == ["questions-test-1"]
    assert [question.id for question in task.benchmark.questions] == ["questions-test-1"]
    assert task.counts == {"test_in_validation": 1}
    assert load("questions", path, test_path=test, n_test=0).benchmark is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "a"}, "the field 'prompt' is missing"),
        ({"prompt": "a"}, "expected either `answer` or a list of `answers`, found 0"),
        ({"prompt": "a", "answer": "b", "answers": ["c"]}, "expected either .*, found 2 of them"),
        ({"prompt": "a", "answer": " "}, "`answer` holds ' ', which is neither a text nor a number"),
        ({"prompt": "a", "answer": ["b"]}, r"`answer` holds \['b'\]"),
        ({"prompt": "a", "answer": True}, "`answer` holds True"),
        ({"prompt": "a", "answers": "b"}, "expected `answers` as a list of texts, found 'b'"),
        ({"prompt": "a", "answers": []}, "expected `answers` as a list"),
        ({"prompt": "a", "answers": ["b", None]}, "`answers` holds None"),
        ({"prompt": "a", "answer": "b", "choises": []}, "the field 'choises' is unknown: expected prompt, answer"),
        ({"prompt": "a", "answer": "b", "opening": 3}, "the field 'opening' is int, not text"),
    ],
)
def test_faults_of_rows(tmp_path, load, row, message):
    path = write_lines(tmp_path / "mine.jsonl", [ROWS[0], row, ROWS[1]])
    with pytest.raises(TaskError, match=f"line 2: {message}"):
        load("questions", path, n_validation=1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "answer": "x", "choices": ["b", "c\n"]}, "the answer 'x' is none of the choices 'b', 'c.n'"),
        ({"prompt": "a", "answer": 2, "choices": ["b", "c"]}, "the answer is number 2, but the choices are 0 to 1"),
        (
            {"prompt": "a", "answer": 1, "choices": [1, 2]},
            "the answer 1 may be the choice '1' or .* '2': write",
        ),
        ({"prompt": "a", "answer": 0, "choices": "bc"}, "expected `choices` as a list of texts, found 'bc'"),
        ({"prompt": "a", "answer": "b"}, "expected `choices` as a list of texts, found None"),
    ],
)
def test_faults_of_choices(tmp_path, load, row, message):
    good = {"prompt": "a", "answer": "b", "choices": ["b", "c"]}
    path = write_lines(tmp_path / "mine.jsonl", [good, row, good])
    with pytest.raises(TaskError, match=f"line 2: {message}"):
        load("questions", path, n_validation=1, metric="choice")


def test_a_number_is_taken_for_a_choice_where_both_ways_to_read_it_agree(tmp_path, load):
    rows = [{"prompt": f"{number}?", "choices": [0, 1], "answer": number} for number in (0, 1)]
    task = load("questions", write_lines(tmp_path / "mine.jsonl", rows), n_validation=1)
    assert task.benchmark.questions[0].answers == ("1",)


FIELDS = st.sampled_from(["prompt", "answer", "answers", "choices", "group", "opening", "id", "other"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(rows=st.lists(st.dictionaries(FIELDS, VALUES, max_size=6), min_size=2, max_size=4), choice=st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_rows_are_questions_or_refused_in_one_line(tmp_path_factory, rows, choice):
    path = tmp_path_factory.mktemp("fuzz") / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", "answer": "b"} | row) + "\n" for row in rows))
    config = TaskConfig("questions", path=str(path), n_validation=1, metric="choice" if choice else None)
    material, message = None, ""
    try:
        material = load_own_questions(config)
    except TaskError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 400
    for question in material.validation + material.benchmark.questions if material else ():
        assert question.answers
        assert question.reference
        assert not question.choices or set(question.answers) <= set(question.choices)
