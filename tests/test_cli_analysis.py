"""`greats analyze` and `greats score` as a user meets them."""

import io
import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from greats_jax.cli import main
from greats_jax.cli.progress import Progress


def fails(capsys, arguments: list[str], expected_code: int) -> str:
    """The one line on standard error of a command that must fail."""
    capsys.readouterr()
    try:
        code: object = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    captured = capsys.readouterr()
    assert code == expected_code, captured.err
    lines = [line for line in captured.err.strip().split("\n") if line.startswith("greats: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return lines[0]


def test_analyze_writes_numbers_and_pictures_and_gives_advice(capsys, config_file, tmp_path):
    folder = tmp_path / "fidelity"
    few = ["--subsets", "12", "--batches", "1", "--after", "1"]
    # A setting may come after options.
    assert main(["analyze", "taylor", str(config_file), *few, "--output", str(folder), "keep=2"]) == 0
    captured = capsys.readouterr()
    assert "At learning rate 0.01" in captured.out
    assert "preconditioned" in captured.out
    assert "training for 1 update on all candidates\ncomparing 12 subsets of 2 from 1 batch of 6" in captured.err
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "taylor.json", "taylor.csv", "predictions-gradient-descent.png", "predictions-optimizer.png", "rates.png",
    }  # fmt: skip
    assert json.loads((folder / "taylor.json").read_text())["keep"] == 2
    for name in names:
        assert str(folder / name) in captured.out
    assert "not empty" in fails(capsys, ["analyze", "taylor", str(config_file), "--output", str(folder)], 1)


def test_analyze_names_its_folder_after_the_run(capsys, config_file):
    line = fails(capsys, ["analyze", "taylor", str(config_file), "data.sources=gone.jsonl"], 1)
    assert "gone.jsonl" in line
    assert not Path(f"{config_file.parent}/run-taylor").exists()  # nothing is left of a command that failed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["analyze"], "ANALYSIS"),
        (["analyze", "tailor"], "tailor"),
        (["analyze", "taylor"], "CONFIG"),
        (["analyze", "taylor", "nowhere.yaml"], "nowhere.yaml: there is no such configuration file"),
        (["analyze", "taylor", "x.yaml", "--subsets", "0"], "0 is not a positive whole number"),
        (["analyze", "taylor", "x.yaml", "--after", "-1"], "-1 is not a whole number"),
        (["analyze", "taylor", "x.yaml", "--learning-rate", "0"], "0 is not a positive number"),
        (["analyze", "taylor", "x.yaml", "--rate", "1"], "without dashes"),
        (["analyze", "taylor", "x.yaml", "--after", "1", "more"], "unrecognized arguments: more"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    assert message in fails(capsys, arguments, 2)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["keep=6"], "too few to compare"),
        (["--after", "4"], "--after is 4, but the run has 3 updates"),
        (["keep=7"], "keep is 7"),
    ],
)
def test_what_leaves_nothing_to_compare(capsys, config_file, extra, message):
    assert message in fails(capsys, ["analyze", "taylor", str(config_file), *extra], 2)
    assert not (config_file.parent / "run-taylor").exists()


# greats score


def test_score_writes_a_table_and_says_where(capsys, config_file, finished_run, tmp_path):
    run, output = str(finished_run.result.folder), tmp_path / "run.parquet"
    assert main(["score", run, "--method", "max_loss", "--output", str(output)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"69 examples scored by max_loss: {output}\n"
    assert main(["score", run, "--method", "max_loss", "--output", str(output)]) == 0  # complete: nothing to do
    other = ["score", run, "--method", "grad_norm", "--output", str(output)]
    assert "other settings (method" in fails(capsys, other, 1)
    again = tmp_path / "checkpoint.parquet"
    command = ["score", str(config_file), "--checkpoint", run, "--output", str(again), "method=max_loss"]
    assert main(command) == 0
    assert pq.read_table(again).equals(pq.read_table(output))
    base = tmp_path / "base.parquet"
    assert main(["score", str(config_file), "--method", "max_loss", "--output", str(base)]) == 0
    assert not pq.read_table(base)["score"].equals(pq.read_table(output)["score"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["score", "--output", "t.parquet"], 2, "|RUN"),
        (["score", "CONFIG"], 2, "--output"),
        (["score", "CONFIG", "--output", "t.csv"], 2, "ends in .parquet"),
        (["score", "gone.yaml", "--output", "t.parquet"], 2, "gone.yaml: there is no such configuration file"),
        (["score", "CONFIG", "--output", "t.parquet", "--batch", "0"], 2, "positive whole number"),
        (["score", "CONFIG", "--output", "t.parquet", "--method", "graets"], 2, "greats"),
        (["score", "CONFIG", "--output", "t.parquet", "--method", "layer_wise"], 2, "no score per candidate"),
        (["score", "CONFIG", "--output", "t.parquet", "--method", "random_k"], 1, "no score per candidate"),
        (["score", "CONFIG", "--output", "t.parquet", "--checkpoint", "gone"], 1, "gone: there is no such folder"),
        (["score", ".", "--output", "t.parquet"], 1, "there is no run here"),
        (["score", ".", "--output", "t.parquet", "seed=1"], 2, "to change seed=1"),
        (["score", ".", "--output", "t.parquet", "--checkpoint", "x"], 2, "leave --checkpoint away"),
    ],
)
def test_score_explains_mistakes(capsys, config_file, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(capsys, [a.replace("CONFIG", str(config_file)) for a in arguments], code)
    assert not list(tmp_path.glob("t.parquet*"))


# Progress


def test_progress_is_a_bar_in_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((80, 0)))  # some report no height
    with Progress("examples") as shown:
        shown.say("before")
        shown.count(10, 40)
        shown.say("between")
        shown.count(40, 40)
    assert "before\n" in terminal.getvalue()
    assert "between\n" in terminal.getvalue()
    assert "40/40" in terminal.getvalue()


def test_progress_is_a_few_lines_elsewhere(capsys):
    with Progress("examples") as shown:
        for done in range(1001):
            shown.count(done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "0 of 1,000 examples"
    assert lines[-1] == "1,000 of 1,000 examples"
    assert len(lines) == 21
