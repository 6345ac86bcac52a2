"""A run that is begun, stopped and gone on with, and what of it must be the same as if it had never been."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tiny import Recording, tiny_config

from greats_jax.training.config_loading import load_config
from greats_jax.training.events import Noticed, Started, Stepped, Tracker
from greats_jax.training.result import RunResult
from greats_jax.training.trainer import Trainer

OF_THE_CLOCK = {
    "seconds", "seconds_waiting", "seconds_selecting", "seconds_picking", "tokens_per_second", "examples_per_second",
    "compiled",
}  # fmt: skip


class StopAt(Recording):
    """Asks a run to stop once it has reported so many updates."""

    def __init__(self, updates: int):
        super().__init__()
        self._updates = updates

    def __call__(self) -> bool:
        return sum(isinstance(event, Stepped) for event in self.events) >= self._updates


class Run:
    """A configuration, run in parts."""

    def __init__(self, config_file: Path, folder: Path, *overrides: str):
        self.file, self.folder, self.overrides = config_file, folder, overrides
        self.heard = Recording()

    def fit(
        self, *more: str, resume: bool = True, stop: Callable[[], bool] = lambda: False, tracker: Tracker | None = None
    ) -> RunResult:
        config = load_config(self.file, [*self.overrides, f"output={self.folder}", *more])
        self.heard = Recording()
        trackers = [self.heard, *(one for one in (stop, tracker) if hasattr(one, "record"))]
        return Trainer(config, trackers, stop, resume=resume).fit()

    def copied(self, folder: Path) -> "Run":
        """The same in a copy of its folder."""
        return Run(self.file, Path(shutil.copytree(self.folder, folder)), *self.overrides)

    def never_stopped(self) -> RunResult:
        """What it would have been, made in a folder beside its own."""
        return Run(self.file, self.folder.with_name("whole"), *self.overrides).fit()

    def heard_of(self, kind: type) -> list:
        return [event for event in self.heard.events if isinstance(event, kind)]

    def notices(self) -> list[str]:
        return [event.text for event in self.heard_of(Noticed)]

    def went_on_after(self) -> int:
        return self.heard_of(Started)[0].done

    def numbers(self) -> list[int]:
        return sorted(int(path.name) for path in (self.folder / "checkpoints").iterdir())


def stopped_after_four(model: Path, data: Path, folder: Path, steps: int, *saving: str) -> Run:
    """A run of the tiny configuration that was stopped after four updates."""
    (folder / "tiny.yaml").write_text(tiny_config(model, data, folder / "run"))
    run = Run(folder / "tiny.yaml", folder / "run", f"steps={steps}")
    run.fit(*saving, stop=StopAt(3))
    return run


def without_clock(records: tuple[dict, ...]) -> list[dict]:
    return [{name: value for name, value in record.items() if name not in OF_THE_CLOCK} for record in records]


def assert_equal(one: RunResult, other: RunResult) -> None:
    assert without_clock(one.metrics) == without_clock(other.metrics)
    assert one.selections == other.selections
    for file in sorted(one.weights.iterdir()):
        assert file.read_bytes() == (other.weights / file.name).read_bytes(), file.name
