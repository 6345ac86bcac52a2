"""Several processes in one run, on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import WORDS

from greats_jax.training.jsonl import read_json_lines
from greats_jax.training.summary import task_scores

PROCESSES, DEVICES = 2, 2
FLAGS = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={DEVICES}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(config: Path, output: Path, *overrides: str, processes: int = PROCESSES) -> list[subprocess.Popen]:
    """The processes of one run; what each says goes to a file beside its folder."""
    env = {**os.environ, "XLA_FLAGS": FLAGS, "JAX_PLATFORMS": "cpu"}
    shared = [f"distributed.coordinator=127.0.0.1:{free_port()}", f"distributed.processes={processes}"]
    started = []
    for number in range(processes):
        own = [*shared, f"distributed.process={number}"] if processes > 1 else []
        words = [sys.executable, "-m", "greats_jax", "train", str(config), "batch=8", "keep=4", "mesh.data=-1"]
        with output.with_suffix(f".said{number}").open("w") as said:
            started.append(
                subprocess.Popen([*words, f"output={output}", *overrides, *own], env=env, stdout=said, stderr=said)
            )
    return started


def finish(started: list[subprocess.Popen], output: Path) -> list[str]:
    codes = [process.wait(timeout=240) for process in started]
    said = [output.with_suffix(f".said{number}").read_text() for number in range(len(started))]
    assert codes == [0] * len(started), said
    return said


def chosen(folder: Path) -> list[list[str]]:
    return [record["chosen"] for record in read_json_lines(folder / "selections.jsonl")]


def test_two_processes_give_what_one_gives(config_file, tmp_path):
    together, alone = tmp_path / "together", tmp_path / "alone"
    said = finish(start(config_file, together, "mesh.fsdp=2"), together)
    finish(start(config_file, alone, processes=1), alone)
    assert chosen(together) == chosen(alone)
    ours, theirs = (
        [record["loss"] for record in read_json_lines(folder / "metrics.jsonl") if record["event"] == "step"]
        for folder in (together, alone)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert "step 3/3" in said[0]
    assert "step" not in said[1]  # one of them reports


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["choice", "f1"])
def test_two_processes_find_the_scores_that_one_finds(metric, config_file, tmp_path):
    questions = tmp_path / "own.jsonl"
    rows = [{"prompt": f"{'say ' * (i + 1)}{WORDS[i % 6]}", "answer": WORDS[i % 6]} for i in range(11)]
    choices = {"choices": WORDS[:6]} if metric == "choice" else {}
    questions.write_text("".join(json.dumps(row | choices) + "\n" for row in rows))
    task = f"task={{name: questions, path: '{questions}', metric: {metric}, n_validation: 4, max_new_tokens: 20}}"
    found = []
    for name, processes, mesh in (("together", 2, "mesh.fsdp=2"), ("alone", 1, "mesh.fsdp=1")):
        finish(start(config_file, tmp_path / name, task, mesh, processes=processes), tmp_path / name)
        records = read_json_lines(tmp_path / name / "metrics.jsonl")
        found.append([task_scores(record) for record in records if record["event"] == "evaluation"])
    assert found[0] == found[1]
    assert all(scores for scores in found[0])


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_one_process_can_go_on(config_file, tmp_path):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    started = start(config_file, stopped, "steps=60")
    waited = time.monotonic()
    while "step 2/60" not in stopped.with_suffix(".said0").read_text():
        assert time.monotonic() - waited < 200
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    assert "go on with" in finish(started, stopped)[0]
    assert len(chosen(stopped)) < 60
    finish(start(config_file, stopped, "steps=60", "--resume", processes=1), stopped)
    finish(start(config_file, whole, "steps=60", processes=1), whole)
    assert chosen(stopped) == chosen(whole)
