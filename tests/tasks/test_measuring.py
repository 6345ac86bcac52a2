"""What a model scores on questions: against plain forward passes, and with questions of every size."""

import math

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from greats_jax.data import Renderer
from greats_jax.errors import TaskError
from greats_jax.models import Decoder, combine, from_pretrained, load_tokenizer, partition
from greats_jax.models.generate import generate
from greats_jax.tasks.measuring import Answered, MeasuringStopped, _taken, averages, measure, written_answers
from greats_jax.tasks.prompting import Prompt, Prompter
from greats_jax.tasks.questions import Benchmark, Likelihood, Question

CHOICES = (" red", " blue", " green one")


@pytest.fixture(scope="module")
def model(tiny_model) -> Decoder:
    """The tiny model with weights large enough that it has preferences."""
    graphdef, params, frozen = partition(from_pretrained(tiny_model))
    return combine(graphdef, jax.tree.map(lambda x: x * (x.ndim > 1) * 12 + x * (x.ndim == 1), params), frozen)


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer(str(tiny_model))


def question(number: int, prompt: str = "say red", group: str = "", **changes) -> Question:
    return Question(f"q{number}", group, prompt, "", ("red",))._replace(**changes)


def letters(*questions: Question, likelihood: Likelihood = "sum") -> Benchmark:
    asked = tuple(one._replace(choices=CHOICES, answers=(" red",), opening="say") for one in questions)
    return Benchmark("letters", asked, "choice", 0, likelihood=likelihood)


def log_likelihood(model, tokenizer, before: str, continuation: str) -> float:
    """Of a continuation, from one forward pass; all are of one length, so that they share what is compiled."""
    start, tokens = len(tokenizer(before)["input_ids"]), tokenizer(before + continuation)["input_ids"]
    row = np.array([tokens + [0] * (20 - len(tokens))])
    log_p = np.asarray(jax.nn.log_softmax(model(row, np.arange(20)[None] < len(tokens))[0].astype(np.float32)))
    return sum(float(log_p[i - 1, tokens[i]]) for i in range(start, len(tokens)))


def test_choices_are_weighed_after_the_rendered_prompt(model, tokenizer):
    benchmark = letters(*(question(i, f"count {word} cat") for i, word in enumerate(("one", "two three", "dog"))))
    found = measure(benchmark, model, tokenizer, batch=2)
    for asked, answer in zip(benchmark.questions, found.answers, strict=True):
        before = f"<user> {asked.prompt} <assistant> say"
        expected = [log_likelihood(model, tokenizer, before, choice) for choice in CHOICES]
        np.testing.assert_allclose(answer.likelihoods, expected, rtol=1e-5)
        assert answer.prediction == CHOICES[int(np.argmax(expected))]
        assert answer.scores == {"accuracy": float(answer.prediction == " red")}
    assert found.scores == {"accuracy": np.mean([answer.scores["accuracy"] for answer in found.answers])}
    assert (found.questions, found.dropped_shots, found.shortened) == (3, 0, 0)


@pytest.mark.parametrize(
    ("kind", "sizes"), [("sum", [1, 1, 1]), ("per_token", [1, 1, 2]), ("per_character", [3, 4, 9])]
)
def test_what_is_compared(kind: Likelihood, sizes, model, tokenizer):
    found = measure(letters(*map(question, range(3)), likelihood=kind), model, tokenizer).answers[0]
    assert found.prediction == CHOICES[int(np.argmax(np.divide(found.likelihoods, sizes)))]


def test_the_length_of_a_choice_is_counted_in_characters():
    asked = question(0, choices=(" ééé", " aaaa"))  # six bytes and four
    prompt = Prompt([], (([1], [2]), ([1], [2])), 0, False)
    assert _taken(asked, prompt, (-3.0, -3.2), "per_character") == " aaaa"


def test_written_answers_are_cut_at_the_first_stop(model, tokenizer):
    asked = tuple(question(i, prompt) for i, prompt in enumerate(("say red", "count", "name two cat")))
    whole = measure(Benchmark("written", asked, "f1", 24), model, tokenizer, batch=2)
    words = [answer.prediction.split() for answer in whole.answers]
    assert len({tuple(one) for one in words}) == 3
    stop = words[0][3]
    cut = measure(Benchmark("written", asked, "f1", 24, stops=("never", stop)), model, tokenizer, batch=2)
    for one, answer in zip(words, cut.answers, strict=True):
        assert answer.prediction.split() == (one[: one.index(stop)] if stop in one else one)
    assert list(cut.scores) == ["f1", "exact_match"]
    assert all(not answer.likelihoods for answer in cut.answers)


@pytest.fixture(scope="module")
def free(model) -> list[int]:
    """What the model writes after three tokens where nothing ends it; the fourth token is not among those before."""
    (tokens,) = generate(model, [[3, 15, 6]], max_new_tokens=12, eos_token_ids=(), batch=1)
    assert tokens[3] not in tokens[:3]
    return tokens


def renamed(fourth: str, free: list[int], template: str) -> Renderer:
    """Of a tokenizer in which the fourth token that the model writes is a special one that is no end of a text."""
    names = {number: f"w{number}" for number in range(18)} | {free[3]: fourth, 18: "<eos>"}
    backend = Tokenizer(WordLevel({name: number for number, name in names.items()}, unk_token="w2"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.add_special_tokens([fourth, "<eos>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def test_a_written_answer_ends_where_the_template_ends_the_turn(model, free):
    template = "{% for m in messages %}{{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
    renderer = renamed("<|im_end|>", free, template)
    expected = " ".join(f"w{token}" for token in free[:3])
    assert written_answers(model, renderer, [[3, 15, 6]], (), 12, 1) == [expected]


def test_a_stop_may_be_a_special_token(model, free):
    renderer = renamed("<|user|>", free, "{% for m in messages %}{{ m.role }} {{ m.content }} <eos> {% endfor %}")
    words = [f"w{token}" for token in free]
    (whole,) = written_answers(model, renderer, [[3, 15, 6]], ("never",), 12, 1)
    assert whole.split() == [word for word in words if word != f"w{free[3]}"]
    (cut,) = written_answers(model, renderer, [[3, 15, 6]], ("never", "<|user|>"), 12, 1)
    assert cut.split() == words[:3]
    (later,) = written_answers(model, renderer, [[3, 15, 6]], (words[4],), 12, 1)
    assert later.split() == words[: words.index(words[4])][:3], "the special token before the stop is left in"


def test_written_and_chosen_answers_in_one_benchmark(model, tokenizer):
    mixed = Benchmark("mixed", (question(0), question(1, choices=CHOICES), question(2)), "exact", 5)
    found = measure(mixed, model, tokenizer)
    assert [bool(answer.likelihoods) for answer in found.answers] == [False, True, False]
    assert found.answers[1].prediction in CHOICES
    assert found.answers[0].prediction == found.answers[2].prediction


def test_worked_examples_go_first_to_last_and_come_back_for_the_next_question(model, tokenizer):
    shots = ("one ", "two ", "three ")
    asked = [question(i, "dog " * n, preamble="name ", shots=shots) for i, n in enumerate((2, 9, 2, 11, 30))]
    prompts = Prompter(model, tokenizer, "auto", 14, 4).prompts(asked)
    assert [tokenizer.decode(prompt.tokens) for prompt in prompts] == [
        "<user> name one two three dog dog <assistant>",
        "<user> name two three dog dog dog dog dog dog dog dog dog <assistant>",
        "<user> name one two three dog dog <assistant>",
        "<user> name dog dog dog dog dog dog dog dog dog dog dog <assistant>",
        "dog dog dog dog dog dog dog dog dog dog dog dog dog <assistant>",
    ]
    assert [prompt.dropped for prompt in prompts] == [0, 1, 0, 3, 3]
    assert [prompt.shortened for prompt in prompts] == [False] * 4 + [True]
    found = measure(Benchmark("shots", tuple(asked), "exact", 4), model, tokenizer, max_length=14)
    assert (found.dropped_shots, found.shortened) == (7, 1)


def test_new_tokens_have_their_place_among_the_positions(model, tokenizer):
    # 128 positions: 100 of them for the answer leave 28, whatever the length allowed.
    prompt = Prompter(model, tokenizer, "auto", 1000, 100).prompts([question(0, "dog " * 60)])[0]
    assert (len(prompt.tokens), prompt.shortened) == (28, True)
    choices = Prompter(model, tokenizer, "auto", 1000, 100).prompts([question(0, "dog " * 60, choices=CHOICES)])[0]
    assert not choices.shortened


def test_means_over_groups_and_over_questions():
    answers = [
        Answered(str(i), group, "", {"accuracy": score})
        for i, (group, score) in enumerate([("a", 1.0), ("a", 0.0), ("a", 0.0), ("a", 0.0), ("b", 1.0)])
    ]
    scores, groups = averages(answers)
    assert groups == {"a": {"accuracy": 0.25}, "b": {"accuracy": 1.0}}
    assert scores == {"accuracy": 0.625, "accuracy_over_questions": 0.4}
    assert averages(answers[:4])[0] == {"accuracy": 0.25}
    assert averages([]) == ({}, {})


def test_a_model_that_gives_no_number_is_right_nowhere(model, tokenizer):
    graphdef, params, frozen = partition(model)
    broken = combine(graphdef, jax.tree.map(lambda x: x * math.nan, params), frozen)
    found = measure(letters(question(0)), broken, tokenizer)
    assert (found.answers[0].prediction, found.scores) == ("", {"accuracy": 0.0})


def test_it_stops_between_batches(model, tokenizer):
    asked = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(MeasuringStopped):
        measure(
            letters(*(question(i, "say " * i) for i in range(20))), model, tokenizer, batch=2, should_stop=should_stop
        )
    assert len(asked) == 3


def test_no_questions(model, tokenizer):
    assert measure(Benchmark("none", (), "exact", 4), model, tokenizer).scores == {}


@pytest.mark.parametrize(
    ("benchmark", "message"),
    [
        (Benchmark("a", (), "bleu", 4), "the metric 'bleu' is unknown"),
        (Benchmark("a", (), "exact", 128), "answers of 128 tokens leave no room for a question"),
        (Benchmark("a", (question(0, choices=("",)),), "choice", 0), "question q0: the choice '' has 0 tokens"),
        (Benchmark("a", (question(7, "\ud800"),), "exact", 4), "question q7: .*half of a surrogate pair"),
    ],
)
def test_what_cannot_be_measured_is_refused(benchmark, message, model, tokenizer):
    with pytest.raises(TaskError, match=message):
        measure(benchmark, model, tokenizer)
