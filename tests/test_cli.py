"""The command line as a user meets it: what it prints, what it returns, and that no mistake shows a traceback."""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from greats_jax import __version__
from greats_jax.cli import main
from greats_jax.cli.console import Console
from greats_jax.training.config_loading import load_config
from greats_jax.training.result import RunResult
from greats_jax.training.trainer import Trainer


@pytest.fixture(scope="module")
def finished(finished_run) -> Path:
    """The folder of a finished LoRA run."""
    return finished_run.result.folder


def fails(capsys, arguments: list[str], expected_code: int) -> str:
    """The single line on standard error of a command that must fail."""
    capsys.readouterr()
    code = exit_code(arguments)
    captured = capsys.readouterr()
    assert code == expected_code, captured.err
    lines = captured.err.strip().split("\n")
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("greats: error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return lines[0]


def exit_code(arguments: list[str]) -> object:
    """Exit code of a command, whichever way it leaves."""
    try:
        return main(arguments)
    except SystemExit as stopped:  # argparse's way
        return stopped.code


# Help and version


def test_version_and_help_import_nothing_heavy():
    program = (
        "import sys; from greats_jax.cli import main\n"
        "try: main([sys.argv[1]])\n"
        "except SystemExit as stop: print(stop.code, sorted({'jax', 'transformers', 'flax'} & set(sys.modules)))\n"
    )
    for argument, words in (("--version", f"greats {__version__}"), ("--help", "evaluate")):
        out = subprocess.run(
            [sys.executable, "-c", program, argument], capture_output=True, text=True, check=True
        ).stdout
        assert words in out
        assert out.strip().endswith("0 []")


def test_libraries_are_silent_in_help():
    command = [sys.executable, "-m", "greats_jax", "train", "--help"]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert completed.stderr == ""
    assert "lora.rank=INTEGER" in completed.stdout


def test_train_help_explains_every_key(capsys):
    from greats_jax.cli.config_help import config_entries
    from greats_jax.training.config import TrainConfig
    from greats_jax.training.config_values import all_keys

    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    entries = {key: description for key, _, _, description in config_entries(TrainConfig)}
    assert list(entries) == all_keys(TrainConfig)
    for key, description in entries.items():
        assert f"  {key}" in text
        assert description.strip(), f"{key} has no description"
    assert "greats_first_order" in text


# Mistakes on the command line and in the configuration: exit code 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["trian"], "train"),
        (["train"], "CONFIG"),
        (["train", "nowhere.yaml"], "nowhere.yaml: there is no such configuration file"),
        (["train", "x.yaml", "--seed", "1"], "without dashes"),
        (["generate", "run"], "--prompt"),
        (["generate", "run", "--prompt", "a", "--max-tokens", "0"], "positive whole number"),
        (["export", "run", "weights", "to"], "adapter"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    assert message in fails(capsys, arguments, 2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rnk=3", 'did you mean "lora.rank"?'),
        ("lora.rank=-1", "rank is -1"),
        ("lora.targets=q_prj", "q_prj"),
        ("model.dtype=float23", 'did you mean "float32"?'),
        ("optimizer.schedule=linaer", 'did you mean "linear"?'),
        ("method=graets", "did you mean 'greats'?"),
        ("keep=7", "keep is 7, more than the 6 candidates"),
        ("data.packing=true", "packing"),
        ("steps=many", "not a whole number"),
        ("task.name=mmul", 'did you mean "mmlu"?'),
    ],
)
def test_wrong_settings(capsys, config_file, override, message):
    code = 1 if override.startswith("lora.targets") else 2  # only the model knows its modules
    assert message in fails(capsys, ["train", str(config_file), override], code)
    assert not (config_file.parent / "run").exists()


# Mistakes in files: exit code 1, and no run folder is left behind


def test_missing_and_empty_data(capsys, config_file, tmp_path):
    line = fails(capsys, ["train", str(config_file), f"data.sources={tmp_path}/gone.jsonl"], 1)
    assert "gone.jsonl" in line
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl" in fails(capsys, ["train", str(config_file), f"data.sources={tmp_path}/empty.jsonl"], 1)
    assert not (tmp_path / "run").exists()


def test_data_that_leaves_nothing_to_learn(capsys, config_file, tmp_path):
    unlabelled = {"messages": [{"role": "user", "content": "say red"}, {"role": "assistant", "content": ""}]}
    (tmp_path / "unlabelled.jsonl").write_text((json.dumps(unlabelled) + "\n") * 8)
    line = fails(capsys, ["train", str(config_file), f"data.sources={tmp_path}/unlabelled.jsonl"], 1)
    assert "of 8 records read, 8 have no words of the assistant to learn" in line


def test_fewer_examples_than_candidates(capsys, config_file):
    line = fails(capsys, ["train", str(config_file), "batch=90"], 1)
    assert "fewer than the 90 candidates" in line


def test_a_broken_record_is_named_by_file_and_line(capsys, config_file, tmp_path):
    good = {"messages": [{"role": "user", "content": "say red"}, {"role": "assistant", "content": "red"}]}
    (tmp_path / "broken.jsonl").write_text(json.dumps(good) + "\n{not json\n")
    line = fails(capsys, ["train", str(config_file), f"data.sources={tmp_path}/broken.jsonl"], 1)
    assert "broken.jsonl, line 2: not valid JSON" in line


def test_an_unknown_subject_is_answered_with_the_nearest(capsys, config_file, tmp_path):
    for split in ("dev", "test"):
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        (tmp_path / "mmlu" / split / f"sociology_{split}.csv").write_text("Why?,a,b,c,d,A\n")
    arguments = ["task.name=mmlu", "task.subject=sociolgy", f"task.path={tmp_path}/mmlu"]
    assert "sociology" in fails(capsys, ["train", str(config_file), *arguments], 1)


def test_a_model_that_is_not_there_or_damaged(capsys, config_file, tiny_model, tmp_path):
    assert "no-model" in fails(capsys, ["train", str(config_file), f"model={tmp_path}/no-model"], 1)
    shutil.copytree(tiny_model, tmp_path / "corrupt")
    weights = tmp_path / "corrupt" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    assert "model.safetensors" in fails(capsys, ["train", str(config_file), f"model={tmp_path}/corrupt"], 1)
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "cut.gguf" in fails(capsys, ["train", str(config_file), f"model={tmp_path}/cut.gguf"], 1)
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written_or_is_taken(capsys, config_file, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "cannot create this folder" in fails(capsys, ["train", str(config_file), f"output={tmp_path}/file/run"], 1)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    line = fails(capsys, ["train", str(config_file), f"output={taken}"], 1)
    assert "not empty" in line
    assert "output=" in line
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]


def test_a_tracker_that_is_not_installed(capsys, config_file, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install" in fails(capsys, ["train", str(config_file), "trackers=wandb"], 2)
    assert not (tmp_path / "run").exists()


def test_debugging_shows_the_traceback(config_file, monkeypatch):
    monkeypatch.setenv("GREATS_DEBUG", "1")
    with pytest.raises(ValueError, match=r"lora\.rnk"):
        main(["train", str(config_file), "lora.rnk=3"])


# A run and what can be done with it


def test_train_prints_lines_and_a_table(capsys, config_file, tmp_path):
    assert main(["train", str(config_file), "method=max_loss"]) == 0
    captured = capsys.readouterr()
    run = tmp_path / "run"
    assert "step 3/3  loss" in captured.err
    assert "\r" not in captured.err  # a file is no terminal: no bar
    assert "validation perplexity" in captured.out
    assert "of chosen" in captured.out
    for source in ("copy", "noise"):
        assert source in captured.out
    assert str(run / "adapter") in captured.out
    assert "tokens/s" in captured.out


def test_training_into_the_same_folder_again_changes_nothing(capsys, finished):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert "not empty" in fails(capsys, ["train", str(finished.parent / "tiny.yaml")], 1)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_evaluate_measures_what_the_run_measured_last(capsys, finished):
    capsys.readouterr()
    assert main(["evaluate", str(finished)]) == 0
    line = capsys.readouterr().out.split("\n")[0].split()
    assert line[0] == "validation_perplexity"
    expected = RunResult.load(finished).summary["after"]["validation_perplexity"]
    assert float(line[1]) == pytest.approx(expected, abs=1e-3)


def test_generate_answers_a_prompt_and_a_file(capsys, finished, tmp_path):
    capsys.readouterr()
    assert main(["generate", str(finished), "--prompt", "say red", "--max-tokens", "4"]) == 0
    answer = capsys.readouterr().out.strip()
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "say red"}\n\n{"prompt": "say blue"}\n')
    assert main(["generate", str(finished), "--file", str(tmp_path / "prompts.jsonl"), "--max-tokens", "4"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["prompt"] for record in records] == ["say red", "say blue"]
    assert records[0]["completion"].strip() == answer
    (tmp_path / "prompts.txt").write_text("say red\n")
    for flags in (["--raw"], ["--base"]):
        assert (
            main(["generate", str(finished), "--file", str(tmp_path / "prompts.txt"), "--max-tokens", "2", *flags]) == 0
        )


def test_an_answer_ends_with_the_turn(finished, monkeypatch):
    asked = []
    monkeypatch.setattr("greats_jax.cli.generate.continue_prompts", lambda *_, **kw: asked.append(kw) or [[6]])
    assert main(["generate", str(finished), "--prompt", "say red"]) == 0
    # <end>, and <user>, which opens the next turn.
    assert [one["eos_token_ids"] for one in asked] == [(1, 3)]


def test_wrong_prompts(capsys, finished, tmp_path):
    assert "gone.txt" in fails(capsys, ["generate", str(finished), "--file", str(tmp_path / "gone.txt")], 1)
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    assert "p.jsonl:2" in fails(capsys, ["generate", str(finished), "--file", str(tmp_path / "p.jsonl")], 1)
    (tmp_path / "p.txt").write_text("\n")
    assert "no prompt" in fails(capsys, ["generate", str(finished), "--file", str(tmp_path / "p.txt")], 1)


def test_export_chosen_examples_that_can_be_trained_on(capsys, finished, tmp_path):
    target = tmp_path / "out" / "chosen.jsonl"
    assert main(["export", str(finished), "chosen", str(target)]) == 0
    records = [json.loads(line) for line in target.read_text().splitlines()]
    chosen = {name for record in RunResult.load(finished).selections for name in record["chosen"]}
    assert {record["greats"]["id"] for record in records} == chosen
    assert all(record["messages"][1]["role"] == "assistant" for record in records)
    assert sum(record["greats"]["chosen"] for record in records) == 3 * 3  # three in each of three steps
    assert "exists already" in fails(capsys, ["export", str(finished), "chosen", str(target)], 1)


def test_exported_weights_are_the_models_own(finished, tmp_path):
    from greats_jax.models import from_pretrained
    from greats_jax.training.setup import load_trained

    assert main(["export", str(finished), "merged", str(tmp_path / "merged")]) == 0
    assert main(["export", str(finished), "adapter", str(tmp_path / "adapter")]) == 0
    trained, tokenizer = load_trained(RunResult.load(finished))
    ids = tokenizer("say red one two", return_tensors="np", add_special_tokens=False).input_ids
    merged = from_pretrained(tmp_path / "merged")(ids)
    assert abs(merged - trained(ids)).max() < 1e-4
    assert abs(merged - from_pretrained(RunResult.load(finished).config.model.source)(ids)).max() > 1e-4
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == (
        finished / "adapter" / "adapter_model.safetensors"
    ).read_bytes()


def test_commands_on_what_is_no_run(capsys, tmp_path):
    for arguments in (["evaluate", "{}"], ["generate", "{}", "--prompt", "a"], ["export", "{}", "chosen", "x.jsonl"]):
        line = fails(capsys, [argument.format(tmp_path) for argument in arguments], 1)
        assert "no run here" in line


def test_a_signal_saves_what_was_done_and_the_command_it_prints_goes_on(config_file, tmp_path):
    run = tmp_path / "a run"
    # Into files: what a pipe holds and nobody reads would stop the program once it is full.
    told, shown = tmp_path / "stderr.txt", tmp_path / "stdout.txt"
    with told.open("w") as stderr, shown.open("w") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-m", "greats_jax", "train", str(config_file), "steps=100000", f"output={run}"],
            stderr=stderr, stdout=stdout, env={**os.environ, "JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 120
            while not ((run / "selections.jsonl").exists() and (run / "selections.jsonl").stat().st_size > 0):
                assert process.poll() is None, told.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
        finally:
            process.kill()
    out, err = shown.read_text(), told.read_text()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert "of chosen" in out
    last = err.strip().split("\n")[-1]
    assert last.startswith("greats: interrupted after ")
    made = int(last.split()[3])
    assert 0 < made < 100000
    assert [path.name for path in (run / "checkpoints").iterdir()] == [str(made)]
    command = shlex.split(last.partition("go on with: ")[2])
    assert command[1:] == ["-m", "greats_jax", "train", str(config_file), "steps=100000", f"output={run}", "--resume"]


def test_commands_on_an_unfinished_run_say_how_to_finish_it(capsys, config_file, tmp_path):
    Trainer(load_config(config_file), should_stop=lambda: True).fit()
    run = str(tmp_path / "run")
    for command in (
        ["evaluate", run],
        ["export", run, "adapter", str(tmp_path / "to")],
        ["generate", run, "--prompt", "say red"],
        ["score", run, "--output", str(tmp_path / "scores.parquet")],
        ["score", str(config_file), "--checkpoint", run, "--output", str(tmp_path / "scores.parquet")],
    ):
        line = fails(capsys, command, 1)
        assert "has not ended" in line
        assert f"greats train {run}/config.yaml output={run} --resume" in line
    assert "go on with it by adding --resume" in fails(capsys, ["train", str(config_file)], 1)
    assert main(["train", str(config_file), "--resume"]) == 0
    assert main(["train", str(config_file), "--resume"]) == 0
    assert "has finished already" in capsys.readouterr().err


def test_what_differs_from_the_run_is_shown_line_by_line(capsys, config_file):
    Trainer(load_config(config_file), should_stop=lambda: True).fit()
    capsys.readouterr()
    assert main(["train", str(config_file), "seed=1", "optimizer.clip=null", "checkpoint.keep_last=3", "--resume"]) == 2
    first, *notes = capsys.readouterr().err.strip().split("\n")
    assert "begun with another configuration" in first
    assert notes == ["  optimizer.clip: 1.0 -> null", "  seed: 0 -> 1"]


def test_the_bar_of_a_terminal(finished_run):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    console = Console(terminal)
    for event in finished_run.tracker.events:
        console.record(event)
    console.close()
    shown = terminal.getvalue()
    assert "\r" in shown
    assert "3/3" in shown
    for part in ("loss ", "ppl ", " tok/s", " left"):
        assert part in shown
    assert "step 3/3  loss" not in shown
