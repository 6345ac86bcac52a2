"""A task's own scores in the records of a run: when they are measured, and that they are those of the model."""

import json

import pytest
from tiny import WORDS, Recording

from greats_jax.cli.console import closing_table
from greats_jax.models import from_pretrained, load_adapter, load_tokenizer
from greats_jax.tasks.measuring import Measured, measure
from greats_jax.training.config_loading import load_config
from greats_jax.training.evaluation import scores_of, too_long
from greats_jax.training.events import Evaluated, Noticed
from greats_jax.training.setup import load_data
from greats_jax.training.summary import task_scores
from greats_jax.training.trainer import Trainer


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Which word was asked for: two choices, the right one alternately first and last."""
    file = tmp_path_factory.mktemp("questions") / "own.jsonl"
    lines = []
    for i in range(12):
        right, wrong = WORDS[i % 6], WORDS[(i + 3) % 6]
        choices = [right, wrong] if i % 2 else [wrong, right]
        lines.append({"prompt": f"say {'say ' * i}{right}", "answer": right, "choices": choices, "group": f"g{i % 2}"})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def fit(config_file, questions, output, *settings):
    overrides = [f"task={{name: questions, path: '{questions}', n_validation: 4}}", f"output={output}", *settings]
    heard = Recording()
    return Trainer(load_config(config_file, overrides), trackers=[heard]).fit(), heard


def evaluations(run) -> list[dict]:
    return [record for record in run.metrics if record["event"] == "evaluation"]


def test_scores_are_measured_at_both_ends_and_are_those_of_the_model(config_file, questions, tiny_model, tmp_path):
    run, heard = fit(config_file, questions, tmp_path / "ends", "evaluate_every=1")
    records = evaluations(run)
    names = ["test_accuracy", "test_accuracy_over_questions"]
    assert [list(task_scores(record)) for record in records] == [names, [], [], names]
    assert [sorted(event.metrics) for event in heard.events if isinstance(event, Evaluated)] == [
        sorted(set(record) - {"event", "step"}) for record in records
    ]

    config, tokenizer = run.config, load_tokenizer(str(tiny_model))
    benchmark = load_data(config, tokenizer).benchmarks[0]
    assert benchmark is not None
    assert {one.group for one in benchmark.questions} == {"g0", "g1"}
    model = load_adapter(from_pretrained(tiny_model), run.weights)
    expected = measure(benchmark, model, tokenizer, template=config.data.template, max_length=config.data.max_length)
    assert task_scores(records[-1]) == {f"test_{name}": value for name, value in expected.scores.items()}

    rows = [line.split() for line in closing_table(run.summary).splitlines()]
    assert ["test", "accuracy", *(f"{records[i]['test_accuracy']:.3f}" for i in (0, -1))] in rows


@pytest.mark.slow
@pytest.mark.parametrize(("when", "measured"), [("never", [0, 0, 0]), ("always", [2, 2, 2])])
def test_when_scores_are_measured(when, measured, config_file, questions, tmp_path):
    run, _ = fit(config_file, questions, tmp_path / when, f"measure={when}", "evaluate_every=2")
    assert [len(task_scores(record)) for record in evaluations(run)] == measured


@pytest.mark.slow
def test_a_run_says_once_that_prompts_do_not_fit(config_file, questions, tmp_path):
    _, heard = fit(config_file, questions, tmp_path / "short", "data.max_length=11", "measure=always")
    said = [event.text for event in heard.events if isinstance(event, Noticed) and "data.max_length" in event.text]
    assert len(said) == 1
    assert "lost their beginning" in said[0]


def test_scores_of_several_tasks_carry_their_names():
    measured = {"a": Measured({"f1": 0.5, "exact_match": 0.25}, {}, (), 4, 0, 0), "b": Measured({}, {}, (), 0, 0, 0)}
    assert scores_of(measured, ("a",)) == {"test_f1": 0.5, "test_exact_match": 0.25}
    several = scores_of(measured, ("a", "b"))
    assert several == {"a/test_f1": 0.5, "a/test_exact_match": 0.25}
    record = {"test_loss": 1.0, "test_perplexity": 2.0, "a/test_loss": 1.0, "validation_loss": 1.0, **several}
    assert task_scores(record) == several


def test_what_did_not_fit_is_said():
    measured = {"a": Measured({}, {}, (), 40, 3, 1), "b": Measured({}, {}, (), 7, 0, 0)}
    assert too_long(measured, 512) == [
        "a: the prompts of 40 questions had to fit in 512 tokens (data.max_length): they lost 3 worked examples and "
        "1 lost their beginning"
    ]
    assert too_long({"a": Measured({}, {}, (), 40, 0, 12)}, 256) == [
        "a: the prompts of 40 questions had to fit in 256 tokens (data.max_length): 12 lost their beginning"
    ]
