"""What the user says, where an answer ends, and how questions that are too long lose their worked examples."""

import pytest

from greats_jax.data import Encoder, Renderer
from greats_jax.errors import TaskError
from greats_jax.tasks import Question, cut_at
from greats_jax.tasks.encoding import encode_questions
from greats_jax.tasks.material import choose, first_shots, in_turn, named

QUESTION = Question(
    "q", "g", "Q: c", "A:", ("3",), shots=("Q: a\nA: 1\n\n", "Q: b\nA: 2\n\n"), preamble="Count.\n\n", reference=" 3"
)


def test_user_turn():
    assert QUESTION.user_turn() == "Count.\n\nQ: a\nA: 1\n\nQ: b\nA: 2\n\nQ: c"
    assert QUESTION.user_turn(5) == QUESTION.user_turn(2) == QUESTION.user_turn()
    assert QUESTION.user_turn(1) == "Count.\n\nQ: b\nA: 2\n\nQ: c"  # the first go first
    assert QUESTION.user_turn(0) == "Count.\n\nQ: c"


@pytest.mark.parametrize(
    ("text", "stops", "kept"),
    [
        ("a\n\nQ: b", ("\n\nQ:", "Q"), "a"),
        ("a Q\n\nQ:", ("\n\nQ:", "Q"), "a "),
        ("abc", ("x", ""), "abc"),
        ("abc", (), "abc"),
        ("x", ("x",), ""),
    ],
)
def test_where_an_answer_ends(text, stops, kept):
    assert cut_at(text, stops) == kept


def encode(tokenizer, questions, length):
    return encode_questions(questions, "test", Renderer(tokenizer, "tulu"), Encoder(tokenizer, length))


def test_examples_of_questions(tokenizer):
    made = encode(tokenizer, [QUESTION, QUESTION._replace(id="r", group="")], 1000)
    assert [(example.id, example.source) for example in made.examples] == [("q", "test-g"), ("r", "test")]
    assert tokenizer.decode(made.examples[0].input_ids) == (
        "<|user|>\nCount.\n\nQ: a\nA: 1\n\nQ: b\nA: 2\n\nQ: c\n<|assistant|>\nA: 3"
    )
    assert tokenizer.decode(made.examples[0].input_ids[made.examples[0].label_mask]) == " 3"
    assert made[1:] == (0, 0)


def test_shots_are_dropped_for_one_question_alone(tokenizer):
    long = QUESTION._replace(id="long", prompt="Q: c" + " c" * 4)
    full = len(encode(tokenizer, [QUESTION], 1000).examples[0].input_ids)
    made = encode(tokenizer, [long, QUESTION, long._replace(shots=())], full)
    texts = [tokenizer.decode(example.input_ids) for example in made.examples]
    assert texts[1] == "<|user|>\n" + QUESTION.user_turn() + "\n<|assistant|>\nA: 3"
    assert texts[0] == "<|user|>\n" + long.user_turn(1) + "\n<|assistant|>\nA: 3"
    assert texts[2] == "<|user|>\n" + long.user_turn(0) + "\n<|assistant|>\nA: 3"
    assert (made.unusable, made.dropped_shots) == (0, 1)


def test_questions_whose_answer_does_not_fit(tokenizer):
    made = encode(tokenizer, [QUESTION, QUESTION._replace(shots=())], 12)
    assert made == ((), 2, 2)


def test_questions_that_no_template_takes(tokenizer):
    with pytest.raises(TaskError, match=r"q: .*surrogate"):
        encode(tokenizer, [QUESTION._replace(prompt="\ud800")], 100)


def test_equal_shares():
    groups = {"a": [1, 2, 3], "b": [4], "c": [5, 6, 7, 8]}
    assert in_turn(groups, 5) == [1, 2, 4, 5, 6]
    assert in_turn(groups, 2) == [1, 4]
    assert in_turn(groups, 100) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert in_turn(groups, 0) == []
    assert in_turn({}, 3) == []


def test_names_of_groups():
    every = ["a_b", "c", "d", "e", "f"]
    assert choose((), every, "task.x", "here") == choose(("all",), every, "task.x", "here") == every
    assert choose(("C", "A b", "c"), every, "task.x", "here") == ["c", "a_b"]
    with pytest.raises(TaskError, match=r"here: task.x names 'z', but there are a_b, c, d, e, f"):
        choose(("z",), every, "task.x", "here")
    assert named("m", every, every, "parts") == "m"
    assert named("m", ["c"], every, "parts") == "m-c"
    assert named("m", ["c", "d"], every, "parts") == "m-c+d"
    assert named("m", ["c", "d", "e", "f"], every, "parts") == "m-4-parts"
    assert named("m", ["c"], ["c"], "parts") == "m-c"


def test_too_few_worked_examples():
    assert first_shots(["a", "b"], 1, "here") == ("a",)
    with pytest.raises(TaskError, match=r"here: task.shots is 3, but there are only 2 worked examples"):
        first_shots(["a", "b"], 3, "here")
