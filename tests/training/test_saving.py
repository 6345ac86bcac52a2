from typing import Any

import pytest

from greats_jax.errors import RunError
from greats_jax.training import saving
from greats_jax.training.config import CheckpointConfig
from greats_jax.training.events import Event, Noticed
from greats_jax.training.recording import Totals
from greats_jax.training.run_folder import NoRecords
from greats_jax.training.saving import Progress, Saved, Saver


class Disk:
    """Checkpoints that fail when they are told to: while they are begun, or later while they are written."""

    def __init__(self, *there: int, begun: tuple[int, ...] = (), written: tuple[int, ...] = ()):
        self._there, self._begun, self._written = list(there), begun, written
        self._pending: int | None = None

    def numbers(self) -> list[int]:
        return sorted(self._there, reverse=True)

    def save(self, number: int, *_: Any) -> None:
        assert self._pending is None
        if number in self._begun:
            raise RunError("full")
        self._pending = number

    def wait(self) -> None:
        number, self._pending = self._pending, None
        if number in self._written:
            raise RunError("full")
        if number is not None:
            self._there.append(number)


class Saving:
    """A saver, driven by hand."""

    def __init__(self, disk: Disk, sound=lambda: True, **settings: Any):
        self.disk, self.events = disk, list[Event]()
        config = CheckpointConfig(**settings)
        self.saver = Saver(config, disk, NoRecords(), {}, self.events.append, sound)  # type: ignore[arg-type]

    def save(self, *updates: int) -> list[str]:
        """What is told meanwhile."""
        self.events.clear()
        for number in updates:
            self.saver.save(None, Progress(Totals(number)))  # type: ignore[arg-type]
        return [event.text for event in self.events if isinstance(event, Noticed)]


def test_due_by_number_of_updates_and_not_where_the_run_goes_on():
    saver = Saving(Disk(4), every_steps=2, every_minutes=None).saver
    assert [number for number in range(9) if saver.due(number)] == [2, 6, 8]


def test_due_by_minutes_since_the_last(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    one = Saving(Disk(), every_minutes=2.0)
    now[0] += 119
    assert not one.saver.due(7)
    now[0] += 1
    assert one.saver.due(7)
    one.save(7)
    assert not one.saver.due(8)
    now[0] += 120
    assert one.saver.due(8)


def test_never_due_when_nobody_asked():
    saver = Saving(Disk(), every_minutes=None).saver
    assert not any(saver.due(number) for number in range(100))


def test_the_same_state_is_saved_once():
    one = Saving(Disk())
    one.save(3, 3)
    one.saver.finish()
    assert one.disk.numbers() == [3]


def test_a_state_that_is_not_sound_takes_no_good_ones_place():
    sound = [True, False, True]
    one = Saving(Disk(), lambda: sound.pop(0))
    one.save(1, 2, 3)
    one.saver.finish()
    assert one.disk.numbers() == [3, 1]


def test_failures_in_a_row_are_told_once_and_after_a_success_again():
    one = Saving(Disk(begun=(2, 8), written=(3, 6)))
    one.save(1)
    told = (
        "a checkpoint could not be written (full); training goes on, and the one after update {} is the last good one"
    )
    assert one.save(2, 3, 4) == [told.format(1)]
    assert one.save(5, 6) == []
    assert one.save(7) == [told.format(5)]
    assert one.save(8) == [told.format(7)]
    with pytest.raises(RunError, match=r"last checkpoint could not be written \(full\); the one after update 7 is"):
        one.saver.finish()


def test_a_last_checkpoint_that_is_not_written_is_an_error():
    one = Saving(Disk(written=(1,)))
    one.save(1)
    with pytest.raises(RunError, match="there is none before it"):
        one.saver.finish()


def test_what_a_checkpoint_knows_survives_being_written_down():
    progress = Progress(Totals(5, 100, 40)).with_evaluation({"validation_loss": 2.5})
    saved = Saved(progress, {"metrics.jsonl": 7}, {"base": "x"})
    assert Saved.of(saved.record()) == saved
    assert progress == Progress(Totals(5, 100, 40), evaluated=5, validation_loss=2.5)
    assert Progress().with_evaluation({"validation_loss": float("nan")}).validation_loss is None
