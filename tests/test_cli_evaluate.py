"""`greats evaluate`: on the run's own task, on another, and before training."""

import json
import shutil

import pytest
from tiny import WORDS

from greats_jax.cli import main
from greats_jax.training.result import RunResult


@pytest.fixture(scope="module")
def folder(finished_run) -> str:
    return str(finished_run.result.folder)


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("own") / "own.jsonl"
    lines = [
        {
            "prompt": f"{'say ' * (i + 1)}{WORDS[i % 6]}",
            "answer": WORDS[i % 6],
            "choices": WORDS[:6],
            "group": "ab"[i % 2],
        }
        for i in range(9)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def test_another_task_than_the_runs(capsys, folder, questions, tmp_path):
    to = tmp_path / "new" / "answers.json"
    command = ["evaluate", folder, "task.name=questions", f"task.path={questions}", "task.n_validation=3"]
    assert main([*command, "--output", str(to)]) == 0
    printed, said = capsys.readouterr()
    rows = [line.split() for line in printed.splitlines()]
    assert [row[0] for row in rows[:2]] == ["validation_perplexity", "test_perplexity"]
    assert rows[3:4] == [["questions-own", "questions", "accuracy"]]
    found = json.loads(to.read_text())
    task = found["tasks"]["questions-own"]
    assert rows[4:] == [
        *([group, "3", f"{task['groups'][group]['accuracy']:.4f}"] for group in sorted(task["groups"], reverse=True)),
        ["mean", "over", "groups", "6", f"{task['scores']['accuracy']:.4f}"],
        ["mean", "over", "questions", "6", f"{task['scores']['accuracy_over_questions']:.4f}"],
    ]
    assert len(task["answers"]) == 6
    assert all(answer["prediction"] in WORDS[:6] or answer["prediction"][1:] in WORDS for answer in task["answers"])
    assert (found["weights"], found["config"]["task"]["path"]) == ("trained", questions)
    assert found["config"]["task"]["test_path"] is None, "the test file of the run's own task is left behind"
    assert "6 of 6 questions" in said


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(capsys, folder, tmp_path):
    assert main(["evaluate", folder, "--output", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert told.err == f"greats: error: {tmp_path}: this is a folder; name a file in it with --output\n"
    (tmp_path / "file").touch()
    assert main(["evaluate", folder, "--output", str(tmp_path / "file" / "answers.json")]) == 1
    assert "choose another with --output" in capsys.readouterr().err


def test_before_training(capsys, finished_run, folder, tmp_path):
    assert main(["evaluate", folder, "--base", "--output", str(tmp_path / "base.json")]) == 0
    found = json.loads((tmp_path / "base.json").read_text())
    before = finished_run.result.summary["before"]
    assert found["metrics"]["test_loss"] == pytest.approx(before["test_loss"], abs=1e-4)
    assert (found["weights"], found["tasks"]) == ("base", {})
    capsys.readouterr()


def test_every_line_of_a_file_can_be_asked(capsys, folder, questions):
    asked = ["task.name=questions", f"task.path={questions}", "task.n_validation=0"]
    assert main(["evaluate", folder, *asked]) == 0
    told = capsys.readouterr()
    assert "0 validation and 9 test examples" in told.err
    assert told.out.startswith("test_perplexity")


def test_weights_that_a_comparison_deleted_are_told(capsys, finished_run, tmp_path):
    shutil.copytree(finished_run.result.folder, tmp_path / "runs" / "run", ignore=shutil.ignore_patterns("adapter"))
    assert main(["evaluate", str(tmp_path / "runs" / "run")]) == 1
    assert "the weights of this run were not kept; a comparison keeps them with keep_w" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path)]) == 1
    assert f"there is no run here (no config.yaml); give one of those in {tmp_path / 'runs'}" in capsys.readouterr().err


def test_the_pool_is_not_read_where_the_task_is_no_part_of_it(capsys, folder):
    gone = "data.sources=/no/such/file.jsonl"
    assert main(["evaluate", folder, gone, "--n-test", "3"]) == 0
    assert "4 validation and 2 test examples" in capsys.readouterr().err
    assert main(["evaluate", folder, gone, "task.name=holdout"]) == 1
    assert "/no/such/file.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message", "code"),
    [
        ("task.nme=mmlu", "task.nme", 2),
        ("task.name=mmlu", "needs task.subject", 2),
        ("task.n_test=0 task.name=examples", "needs task.path", 2),
        ("model.source=other", "model.source changes nothing about a run that has ended: greats evaluate takes", 2),
        ("task.n_test=3 seed=5", "seed changes nothing", 2),
        ("sead=5", "sead", 2),
        ("evaluate_batch=0", "evaluate_batch is 0, but it must be at least 1", 2),
    ],
)
def test_mistakes_are_one_line(setting, message, code, capsys, folder):
    assert main(["evaluate", folder, *setting.split()]) == code
    assert message in capsys.readouterr().err


def test_a_run_is_left_as_it_is(finished_run, folder):
    assert RunResult.load(folder) == finished_run.result
