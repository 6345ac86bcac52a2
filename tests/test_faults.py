"""Faults injected into whole runs: each is told in one line, nothing is corrupt afterwards, and the run can go on.

`docs/reliability.md` lists them, with those that are tested beside the parts they belong to.
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import pytest
from runs import Run, assert_equal, stopped_after_four
from tiny import Recording

from greats_jax.errors import DataError, GreatsError, RunError
from greats_jax.training import selecting
from greats_jax.training.config_loading import load_config
from greats_jax.training.events import Evaluated, Event, Stepped
from greats_jax.training.result import RunResult
from greats_jax.training.trainer import Trainer

SAVING = ("checkpoint.every_steps=1", "checkpoint.keep_best=0")


@pytest.fixture(scope="module")
def began(tiny_model, tiny_data, tmp_path_factory) -> Run:
    """A run stopped after four of its six updates, with checkpoints of the last two; to be copied."""
    folder = tmp_path_factory.mktemp("began")
    return stopped_after_four(tiny_model, tiny_data, folder, 6, *SAVING)


@pytest.fixture(scope="module")
def whole(began) -> RunResult:
    """The same run, never stopped."""
    return began.never_stopped()


@pytest.fixture
def run(began, tmp_path) -> Run:
    """A copy of the stopped run."""
    return began.copied(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of a given size; the test is skipped where that is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a file system is not allowed here")
        return place

    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", place], capture_output=True)


class From(Recording):
    """Does something after every update from one on."""

    def __init__(self, updates: int, action: Callable[[], object]):
        super().__init__()
        self._updates, self._action = updates, action

    def record(self, event: Event) -> None:
        super().record(event)
        if isinstance(event, Stepped) and event.step >= self._updates:
            self._action()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def one_line(error: BaseException) -> bool:
    return len(str(error).splitlines()) == 1 and len(str(error)) < 1000


@pytest.mark.parametrize("name", ["metrics.jsonl", "selections.jsonl", "config.yaml"])
def test_damaged_records_are_one_line_and_nothing_is_written_over(name, run):
    """A byte that is no UTF-8 in the middle of what the run has written so far."""
    path = run.folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] = 0xFF
    path.write_bytes(content)
    with pytest.raises(GreatsError) as caught:
        run.fit()
    assert one_line(caught.value)
    assert name in "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert path.read_bytes() == content


def test_a_record_that_is_json_and_no_record_is_one_line(run):
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    lines[1] = "7" + " " * (len(lines[1]) - 1)
    (run.folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(RunError, match="none of the checkpoints") as caught:
        run.fit()
    assert all("metrics.jsonl:2: not a JSON record" in note for note in caught.value.__notes__)


def test_a_full_disk_stops_the_run_or_its_checkpoints_and_it_goes_on_later(began, small_disk, tmp_path):
    """On a real file system of four megabytes, filled up while the run is under way.

    Checkpoints of updates 2 and 4 are on it by then; later ones fail and are told, until no record can be written.
    """
    disk = small_disk("4m")
    overrides = ("steps=40", "checkpoint.every_steps=2", "checkpoint.keep_best=0")
    run = Run(began.file, disk / "run", *overrides)

    def fill() -> None:
        with (disk / "ballast").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 512)

    with pytest.raises(RunError, match=r"jsonl: cannot be written \(No space left on device\)") as caught:
        run.fit(tracker=From(6, fill))
    assert one_line(caught.value)
    assert not (run.folder / "summary.json").exists()
    assert len([text for text in run.notices() if "a checkpoint could not be written" in text]) == 1
    (disk / "ballast").unlink()
    assert_equal(run.fit(), Run(began.file, tmp_path / "never", *overrides).fit())
    assert run.went_on_after() >= 2


def test_a_folder_that_turned_read_only_is_one_line_and_goes_on_once_it_is_not(began, whole, small_disk):
    disk = small_disk("8m")
    run = Run(began.file, Path(shutil.copytree(began.folder, disk / "run")), *began.overrides)
    before = {path: path.read_bytes() for path in files(run.folder)}
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(RunError, match="Read-only file system") as caught:
        run.fit()
    assert one_line(caught.value)
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert {path: path.read_bytes() for path in files(run.folder)} == before
    assert_equal(run.fit(), whole)


@pytest.mark.parametrize("kind", ["a file in its place", "a read-only file system"])
def test_a_folder_that_cannot_be_made_is_one_line(kind, config_file, tmp_path):
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "run" if kind == "a file in its place" else Path("/proc/run")
    with pytest.raises(RunError, match="cannot create this folder") as caught:
        Trainer(load_config(config_file, [f"output={place}"])).fit()
    assert one_line(caught.value)
    assert not place.exists()


@pytest.mark.parametrize("fault", ["a folder in its place", "cut short", "gone"])
def test_an_unreadable_shard_of_the_model_is_one_line_before_anything_is_written(
    fault, config_file, tiny_model, tmp_path
):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    shard = model / "model.safetensors"
    content = shard.read_bytes()
    shard.unlink()
    if fault == "a folder in its place":
        shard.mkdir()
    elif fault == "cut short":
        shard.write_bytes(content[:-1])
    with pytest.raises(GreatsError, match=r"model\.safetensors|has no weights") as caught:
        Trainer(load_config(config_file, [f"model={model}"])).fit()
    assert one_line(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_corrupt_record_stops_the_run_before_it_begins_or_is_left_out(config_file, tiny_data, tmp_path):
    lines = (tiny_data / "copy.jsonl").read_bytes().splitlines(keepends=True)
    lines[7] = b'{"messages": [{"role": "user", "content": "\xff\n'
    (tmp_path / "copy.jsonl").write_bytes(b"".join(lines))
    overrides = [f"data.sources={tmp_path}/copy.jsonl", "steps=1"]
    with pytest.raises(DataError, match=r"copy\.jsonl, line 8: not text in UTF-8") as caught:
        Trainer(load_config(config_file, overrides)).fit()
    assert one_line(caught.value)
    assert not (tmp_path / "run").exists()
    told = Recording()
    Trainer(load_config(config_file, [*overrides, "data.on_bad_record=skip"]), [told]).fit()
    assert told.events[0].dropped["copy"]["bad"] == 1  # type: ignore[union-attr]


def test_weights_that_blow_up_stop_the_run_and_the_last_good_checkpoint_is_named(began, tmp_path):
    """The third update is made with a rate that overflows: from then on no loss is finite, and nothing is learned."""
    run = Run(began.file, tmp_path / "run", "steps=40", "optimizer.name=sgd", "optimizer.clip=null", "lora=null")
    exploding = ["optimizer.learning_rate=1e30", "guards.skipped_in_a_row=5"]
    with pytest.raises(RunError, match=r"last 5 updates, up to \d+, were all skipped: .* not finite") as caught:
        run.fit(*SAVING, *exploding)
    assert one_line(caught.value)
    assert "checkpoint" in str(caught.value)
    steps = [event for event in run.heard_of(Stepped) if event.metrics["skipped"]]
    assert len(steps) == 5
    assert len([text for text in run.notices() if "was skipped" in text]) == 1
    # While updates were skipped no checkpoint took the place of an older one.
    assert max(run.numbers()) < steps[0].step


@pytest.mark.slow  # compiles a loss of its own; test_step.py shows the same of the step
def test_candidates_that_are_not_finite_are_left_out_and_counted(began, tiny_model, tmp_path, monkeypatch):
    """Every row with one word in it has no finite loss; the others are learned from as ever."""
    word = json.loads((tiny_model / "tokenizer.json").read_text())["model"]["vocab"]["green"]
    make = selecting.language_model_loss

    def poisoned(*arguments, **settings):
        loss = make(*arguments, **settings)
        return lambda params, frozen, row: jnp.where((row.input_ids == word).any(), jnp.nan, loss(params, frozen, row))

    monkeypatch.setattr(selecting, "language_model_loss", poisoned)
    result = Run(began.file, tmp_path / "run", *began.overrides).fit()
    lost = [loss is None for record in result.selections for loss in record["losses"]]
    assert 0 < sum(lost) < len(lost)
    assert result.summary["rejected_candidates"] == sum(lost)
    assert result.summary["skipped"] == 0
    for record in result.selections:
        losses = dict(zip(record["candidates"], record["losses"], strict=True))
        assert all(losses[name] is not None for name in record["chosen"])


def test_a_clock_that_jumps_changes_nothing(began, whole, tmp_path, monkeypatch):
    """Hours forwards and years backwards: checkpoints by the minute go by a clock that does not."""
    real, jumps = time.time, iter([3e4, -9e8, 2e9, -1e9] * 100_000)
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    run = Run(began.file, tmp_path / "run", *began.overrides)
    result = run.fit("checkpoint.every_minutes=10")
    assert_equal(result, whole)
    assert all(record["seconds"] >= 0 for record in result.metrics)
    assert not (run.folder / "checkpoints").exists(), "ten minutes have not passed"


def test_trackers_that_are_down_are_dropped_and_the_run_ends(began, whole, tmp_path, monkeypatch):
    tensorboard = pytest.importorskip("tensorboardX")

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensorboard.SummaryWriter, "add_scalar", refuse)
    run = Run(began.file, tmp_path / "run", *began.overrides)
    assert_equal(run.fit("trackers=tensorboard"), whole)
    assert [text for text in run.notices() if "tensorboard fails (" in text and "No space left" in text]
    assert len([text for text in run.notices() if text.startswith("trackers: ")]) == 1


def test_sigterm_in_an_evaluation_saves_and_goes_on_to_the_same_end(began, whole, tmp_path):
    """The signal itself, to this process, as the second evaluation begins."""
    from greats_jax.cli.stopping import stop_on_signals

    run = Run(began.file, tmp_path / "run", *began.overrides)
    with stop_on_signals() as stop:

        def send() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            until = time.monotonic() + 10
            while not stop.requested() and time.monotonic() < until:  # a thread hears it; the evaluation is shorter
                time.sleep(0.001)

        tracker = From(6, send)
        assert run.fit(stop=stop.requested, tracker=tracker).status == "interrupted"
    assert len(run.heard_of(Evaluated)) == 1
    assert_equal(run.fit(), whole)
