import math
import sys
import types

import pytest

from greats_jax.data import DataConfig
from greats_jax.errors import ConfigError, RunError
from greats_jax.training.config import ModelConfig, TrainConfig
from greats_jax.training.events import Evaluated, Noticed, Started, Stepped
from greats_jax.training.trackers import Expendable, build_trackers, check_trackers

EVENTS = (
    Evaluated(0, {"validation_perplexity": 9.0, "test_perplexity": math.nan}),
    Noticed("nothing to chart"),
    Stepped(1, {"loss": 2.5, "candidate_loss": math.nan, "compiled": True}),
)


def config(*names: str) -> TrainConfig:
    return TrainConfig(model=ModelConfig("m"), data=DataConfig(), trackers=names, wandb_project="mine")  # type: ignore


def test_tensorboard_gets_the_scalars_that_are_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    [tracker] = build_trackers(config("tensorboard", "tensorboard"), tmp_path, pytest.fail)
    for event in EVENTS:
        tracker.record(event)
    tracker.close()
    [events] = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/loss" in content
    assert b"task/validation_perplexity" in content
    assert b"candidate_loss" not in content


def test_tensorboard_drops_what_a_run_gone_on_with_makes_again(tmp_path):
    written = pytest.importorskip("tensorboardX.proto.event_pb2")
    [tracker] = build_trackers(config("tensorboard"), tmp_path, pytest.fail)
    numbers = dict.fromkeys(("trainable", "total", "pool", "validation", "test"), 1)
    tracker.record(Started(config(), tmp_path, steps=9, done=4, sources=(), dropped={}, **numbers))
    tracker.record(Stepped(5, {"loss": 2.5}))
    tracker.close()
    content, starts = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_size).read_bytes(), []
    while content:  # records of a length in 8 bytes, its checksum in 4, the event, and its checksum in 4
        size = int.from_bytes(content[:8], "little")
        event, content = written.Event.FromString(content[12 : 12 + size]), content[16 + size :]
        starts += [event.step] if event.session_log.status == written.SessionLog.START else []
    assert starts == [5]


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
    [tracker] = build_trackers(config("wandb"), tmp_path / "run", pytest.fail)
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
        build_trackers(config("wandb"), tmp_path, pytest.fail)


@pytest.mark.parametrize("fails", ["record", "close"])
def test_a_tracker_that_fails_is_reported_once_and_dropped(fails):
    done, notices = [], []

    class Backend:
        def record(self, event):
            done.append("record")
            if fails == "record":
                raise ConnectionError("the server is down\n(503)")

        def close(self):
            done.append("close")
            if fails == "close":
                raise OSError(28, "No space left on device")

    tracker = Expendable(Backend(), "wandb", notices.append)
    for event in EVENTS:
        tracker.record(event)
    tracker.close()
    [notice] = notices
    assert "trackers: wandb fails" in notice
    assert "\n" not in notice
    # One that fails is told nothing more, and closed so that it leaves nothing open.
    assert done == (["record", "close"] if fails == "record" else ["record"] * 3 + ["close", "close"])
