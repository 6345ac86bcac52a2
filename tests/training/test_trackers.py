import math
import sys
import types

import pytest

from greats_jax.data import DataConfig
from greats_jax.errors import ConfigError, RunError
from greats_jax.training.config import ModelConfig, TrainConfig
from greats_jax.training.events import Evaluated, Noticed, Stepped
from greats_jax.training.trackers import build_trackers, check_trackers

EVENTS = (
    Evaluated(0, {"validation_perplexity": 9.0, "test_perplexity": math.nan}),
    Noticed("nothing to chart"),
    Stepped(1, {"loss": 2.5, "candidate_loss": math.nan, "compiled": True}),
)


def config(*names: str) -> TrainConfig:
    return TrainConfig(model=ModelConfig("m"), data=DataConfig(), trackers=names, wandb_project="mine")  # type: ignore


def test_tensorboard_gets_the_scalars_that_are_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    [tracker] = build_trackers(config("tensorboard", "tensorboard"), tmp_path)
    for event in EVENTS:
        tracker.record(event)
    tracker.close()
    [events] = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content
    assert b"task/validation_perplexity" in content
    assert b"candidate_loss" not in content


def test_wandb_gets_configuration_scalars_and_an_end(tmp_path, monkeypatch):
    logged, started, finished = [], [], []

    class Run:
        def log(self, values):
            logged.append(values)

        def finish(self):
            finished.append(True)

    module = types.ModuleType("wandb")
    module.init = lambda **settings: started.append(settings) or Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    [tracker] = build_trackers(config("wandb"), tmp_path / "run")
    for event in EVENTS:
        tracker.record(event)
    tracker.close()
    assert started[0]["project"] == "mine"
    assert started[0]["name"] == "run"
    assert started[0]["config"]["method"] == "greats"
    assert logged == [
        {"task/validation_perplexity": 9.0, "step": 0},
        {"train/loss": 2.5, "train/compiled": 1.0, "step": 1},
    ]
    assert finished == [True]


@pytest.mark.parametrize(("name", "module"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"run pip install {module}"):
        check_trackers(config(name))


def test_wandb_that_cannot_start_is_one_line(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError("api_key not configured\n(no-tty)")

    module = types.ModuleType("wandb")
    module.init = refuse  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(RunError, match=r"api_key not configured \(no-tty\)"):
        build_trackers(config("wandb"), tmp_path)
