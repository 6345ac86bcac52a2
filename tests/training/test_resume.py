"""A run that is stopped and gone on with is, but for its clock, the run that was never stopped."""

import errno
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import Run, StopAt, assert_equal, stopped_after_four
from tiny import Recording

from greats_jax.errors import ConfigError, RunError
from greats_jax.training.checkpoints import Checkpoints
from greats_jax.training.config_loading import load_config
from greats_jax.training.events import Evaluated, Event, Stepped
from greats_jax.training.folder_lock import locked
from greats_jax.training.jsonl import JsonLines
from greats_jax.training.result import RunResult
from greats_jax.training.trainer import Trainer


@pytest.fixture(scope="module")
def began(tiny_model, tiny_data, tmp_path_factory) -> Run:
    """A run that was stopped after four of its five updates, with checkpoints of the last two; to be copied."""
    folder = tmp_path_factory.mktemp("began")
    return stopped_after_four(tiny_model, tiny_data, folder, 5, "checkpoint.every_steps=1", "checkpoint.keep_best=0")


@pytest.fixture(scope="module")
def whole(began) -> RunResult:
    """The same run, never stopped."""
    return began.never_stopped()


@pytest.fixture
def run(began, tmp_path) -> Run:
    """A copy of the stopped run."""
    return began.copied(tmp_path / "run")


def test_what_was_stopped_holds_what_was_done(run, whole):
    assert run.numbers() == [3, 4]
    assert_equal(run.fit(), whole)
    assert run.went_on_after() == 4
    assert [event.step for event in run.heard_of(Stepped)] == [5]
    assert [event.step for event in run.heard_of(Evaluated)] == [5]  # that before the first update is not repeated


@pytest.mark.slow
def test_stopped_twice_it_ends_as_if_it_had_never_been(config_file, tmp_path):
    overrides = ("steps=6", "evaluate_every=2", "accumulate=2", "lora.dropout=0.3", "optimizer.schedule=cosine")
    never = Run(config_file, tmp_path / "never", *overrides).fit()
    twice = Run(config_file, tmp_path / "twice", *overrides)
    assert twice.fit(stop=StopAt(1)).status == "interrupted"
    assert twice.numbers() == [2]
    assert twice.fit(stop=StopAt(1)).summary["steps"] == 4
    assert twice.went_on_after() == 2
    assert_equal(twice.fit(), never)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ("method=uds", "batch=6"),
        ("validation.mode=cached", "validation.refresh_every=3", "validation.per_step=2"),
        ("method=random_k", "lora=null", "model.dtype=bfloat16"),
        ("method=target_only", "optimizer=sgd", "optimizer.momentum=0.9"),
        ("scoring.passes=two", "data.group_by_length=true", "data.buckets=2"),
        ("method=opus", "validation.source=recent"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_kind_of_state_goes_on(config_file, tmp_path, overrides):
    never = Run(config_file, tmp_path / "never", "steps=5", *overrides).fit()
    once = Run(config_file, tmp_path / "once", "steps=5", *overrides)
    once.fit(stop=StopAt(1))
    assert_equal(once.fit(), never)


@pytest.mark.slow
def test_devices_may_come_and_go(config_file, tmp_path):
    """Sums are taken in another order then, so that numbers agree to rounding, and what is chosen agrees."""
    overrides = ("steps=9", "batch=8", "keep=4", "lora=null")
    one = Run(config_file, tmp_path / "one", *overrides, "mesh.data=1").fit()
    many = Run(config_file, tmp_path / "many", *overrides)
    many.fit("mesh.data=2", "mesh.fsdp=4", stop=StopAt(2))
    many.fit("mesh.data=1", stop=StopAt(2))
    result = many.fit("mesh.data=1", "mesh.fsdp=4", "mesh.tensor=2")
    assert many.went_on_after() == 6
    assert [record["chosen"] for record in result.selections] == [record["chosen"] for record in one.selections]
    steps, expected = ([r["loss"] for r in run.metrics if r["event"] == "step"] for run in (result, one))
    assert steps == pytest.approx(expected, rel=1e-5)


def test_records_after_the_checkpoint_are_written_anew(run, whole):
    """As a killed run leaves them: more lines than the newest checkpoint knows, the last one cut, and a lock."""
    shutil.rmtree(run.folder / "checkpoints" / "4")
    shutil.copytree(whole.weights, run.folder / "adapter")
    with (run.folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "st')
    (run.folder / ".lock").touch()
    assert_equal(run.fit(), whole)
    assert [event.step for event in run.heard_of(Stepped)] == [4, 5]


@pytest.mark.slow
def test_an_evaluation_that_was_cut_short_is_made_again(config_file, tmp_path):
    overrides = ("steps=2", "evaluate_every=1", "evaluate_batch=1")  # nine batches in each of three evaluations
    never = Run(config_file, tmp_path / "never", *overrides).fit()
    parts = Run(config_file, tmp_path / "parts", *overrides)
    evaluations = []
    for patience in (2, 15):  # in the first evaluation, and in the second
        asked = iter(range(100))
        parts.fit(stop=lambda asked=asked, patience=patience: next(asked) >= patience)
        evaluations.append([event.step for event in parts.heard_of(Evaluated)])
    assert evaluations == [[], [0]]
    assert parts.numbers() == [0, 1]
    assert_equal(parts.fit(), never)


def test_begun_without_a_checkpoint_it_begins_again(run, whole):
    shutil.rmtree(run.folder / "checkpoints")
    assert_equal(run.fit(), whole)
    assert run.went_on_after() == 0


def test_a_finished_run_is_left_alone(whole, began):
    finished = Run(began.file, whole.folder, *began.overrides)
    before = {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()}
    assert finished.fit() == whole
    assert "has finished already" in finished.notices()[0]
    assert {path: path.read_bytes() for path in whole.folder.rglob("*") if path.is_file()} == before


def test_an_unfinished_run_is_not_begun_over_by_accident(run):
    with pytest.raises(RunError, match=r"unfinished run.*--resume"):
        run.fit(resume=False)
    assert run.numbers() == [3, 4]


def test_a_folder_of_something_else_is_not_gone_on_with(began, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        Run(began.file, tmp_path, *began.overrides).fit()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_another_configuration_is_refused(run):
    with pytest.raises(ConfigError, match="begun with another configuration") as refused:
        run.fit("seed=3", "optimizer.learning_rate=0.5")
    assert refused.value.__notes__ == ["optimizer.learning_rate: 0.01 -> 0.5", "seed: 0 -> 3"]
    assert run.numbers() == [3, 4]


def test_what_decides_no_number_may_change(run, whole):
    """As may the place of the folder: this one was copied."""
    assert_equal(run.fit("checkpoint.keep_last=1", "wandb_project=other"), whole)
    assert load_config(run.folder / "config.yaml").wandb_project == "other"


def test_another_base_model_or_other_data_are_refused(config_file, tmp_path, tiny_model, tiny_data):
    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copytree(tiny_data, tmp_path / "data")
    sources = f"data.sources={tmp_path}/data/copy.jsonl,{tmp_path}/data/noise.jsonl"
    run = Run(config_file, tmp_path / "run", "steps=5", f"model={tmp_path}/model", sources)
    run.fit(stop=lambda: True)
    weights = tmp_path / "model" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RunError, match="the pretrained model is not the one"):
        run.fit()
    weights.write_bytes(whole)
    lines = (tmp_path / "data" / "copy.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "data" / "copy.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(RunError, match="the examples are not those"):
        run.fit()


def damage(checkpoint: Path) -> None:
    [manifest] = (checkpoint / "state").glob("manifest.ocdbt")
    manifest.write_bytes(manifest.read_bytes()[:20])


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(run, whole):
    damage(run.folder / "checkpoints" / "4")
    assert_equal(run.fit("checkpoint.every_steps=1", "checkpoint.keep_best=0"), whole)
    assert [text for text in run.notices() if text.startswith("checkpoint 4 cannot be used: ")]
    assert run.went_on_after() == 3
    assert run.numbers() == [4, 5]  # the damaged one was replaced


def test_records_shorter_than_a_checkpoint_says_make_it_useless(run, whole):
    lines = (run.folder / "selections.jsonl").read_text().splitlines(keepends=True)
    (run.folder / "selections.jsonl").write_text("".join(lines[:3]))
    assert_equal(run.fit(), whole)
    assert any("selections.jsonl holds" in text for text in run.notices())
    assert run.went_on_after() == 3


def test_without_a_whole_checkpoint_nothing_is_begun_over(run):
    for number in (3, 4):
        damage(run.folder / "checkpoints" / str(number))
    before = (run.folder / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"none of the checkpoints \(4, 3\) can be used"):
        run.fit()
    assert (run.folder / "metrics.jsonl").read_bytes() == before


def test_two_processes_do_not_share_a_folder(run):
    with locked(run.folder), pytest.raises(RunError, match="another process is at work"):
        run.fit()
    assert not (run.folder / ".lock").exists()


class FullDisk(Recording):
    """Lets no file grow beyond a size from an update on; the limit goes when the run lets go of it."""

    def __init__(self, at: int, size: int):
        super().__init__()
        self._at, self._size = at, size
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def record(self, event: Event) -> None:
        if isinstance(event, Stepped) and event.step == self._at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

    def close(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


@pytest.mark.slow
def test_training_goes_on_when_checkpoints_no_longer_fit(began, whole, tmp_path, monkeypatch):
    save = Checkpoints.save

    def full(self, number: int, *rest: Any) -> None:
        if number in (2, 3):
            raise RunError("No space left on device")
        save(self, number, *rest)

    monkeypatch.setattr(Checkpoints, "save", full)
    run = Run(began.file, tmp_path / "run", *began.overrides)
    assert_equal(run.fit("checkpoint.every_steps=1", "checkpoint.keep_best=0"), whole)
    assert [text for text in run.notices() if "a checkpoint could not be written" in text] == [
        "a checkpoint could not be written (No space left on device); training goes on, and the one after update 1 is "
        "the last good one"
    ]
    assert run.numbers() == [4, 5]


def test_a_full_disk_stops_the_run_in_one_line_and_it_can_be_gone_on_with(began, whole, tmp_path):
    run = Run(began.file, tmp_path / "run", *began.overrides)
    config = load_config(run.file, [*run.overrides, f"output={run.folder}"])
    with pytest.raises(RunError, match=r"metrics\.jsonl: cannot be written \(File too large\)"):
        Trainer(config, [FullDisk(at=2, size=1800)]).fit()
    assert not (run.folder / "summary.json").exists()
    assert_equal(run.fit(), whole)


def test_a_disk_that_takes_half_a_line_is_reported(tmp_path, monkeypatch):
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.write({"a": 1})
    lines.close()

    class Full:
        def write(self, data: memoryview) -> int:
            if len(data) <= 4:
                raise OSError(errno.ENOSPC, "No space left on device")
            return len(data) - 4

    monkeypatch.setattr(lines, "_file", Full())
    with pytest.raises(RunError, match=r"x\.jsonl: cannot be written \(No space left on device\)"):
        lines.write({"a": 2})
