"""When a run saves itself, and what it writes beside its state."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from greats_jax.errors import RunError
from greats_jax.training.checkpoints import Checkpoints
from greats_jax.training.config import CheckpointConfig
from greats_jax.training.events import Event, Noticed
from greats_jax.training.recording import Totals
from greats_jax.training.run_folder import NoRecords, RunFolderTracker
from greats_jax.training.state import TrainState


class Progress(NamedTuple):
    """How far a run has come, between two updates.

    Attributes:
        totals: What was counted.
        evaluated: Updates behind the latest evaluation; -1 before the first.
        validation_loss: What that evaluation measured; None where it is not finite.
    """

    totals: Totals = Totals()
    evaluated: int = -1
    validation_loss: float | None = None

    @property
    def updates(self) -> int:
        """Optimizer updates made."""
        return self.totals.updates

    def with_evaluation(self, metrics: Mapping[str, float]) -> "Progress":
        """The same with an evaluation of the present state."""
        loss = metrics["validation_loss"]
        return self._replace(evaluated=self.updates, validation_loss=loss if math.isfinite(loss) else None)


class Saved(NamedTuple):
    """What a checkpoint knows beside the state.

    Attributes:
        progress: Of the run.
        lengths: Bytes that its files of records had.
        origin: What the run stands on (see `resuming.origin_of`).
    """

    progress: Progress
    lengths: dict[str, int]
    origin: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        progress = {**self.progress._asdict(), "totals": self.progress.totals._asdict()}
        return {"progress": progress, "lengths": self.lengths, "origin": self.origin}

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Saved":
        """The inverse of `record`."""
        progress = Progress(**{**record["progress"], "totals": Totals(**record["progress"]["totals"])})
        return cls(progress, record["lengths"], record["origin"])


class Saver:
    """Saves a run when it is time to. A disk that is full is reported, and does not stop the training.

    Args:
        config: When.
        checkpoints: Where to.
        records: The run's files of records, whose lengths belong to what is saved.
        origin: What the run stands on.
        emit: Told what goes wrong.
        sound: Whether the state is worth keeping; while it is not, no checkpoint takes a good one's place.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        checkpoints: Checkpoints,
        records: RunFolderTracker | NoRecords,
        origin: dict[str, Any],
        emit: Callable[[Event], None],
        sound: Callable[[], bool] = lambda: True,
    ):
        self._config, self._checkpoints, self._records = config, checkpoints, records
        self._origin, self._emit, self._sound = origin, emit, sound
        self._saved = next(iter(checkpoints.numbers()), None)  # what the run goes on from
        self._writing = False  # whether a checkpoint may still be on its way to the disk
        self._failure: RunError | None = None  # that of the latest one, unless it succeeded
        self._clock = time.monotonic()

    def due(self, updates: int) -> bool:
        """Whether a checkpoint is to be made after so many updates."""
        if updates in (0, self._saved):
            return False
        steps, minutes = self._config.every_steps, self._config.every_minutes
        by_steps = steps is not None and updates % steps == 0
        return by_steps or (minutes is not None and time.monotonic() - self._clock >= 60 * minutes)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Save, unless this very state was saved before; a failure is told once and leaves the last good checkpoint."""
        if progress.updates == self._saved or not self._sound():
            return
        self._clock = time.monotonic()
        saved = Saved(progress, self._records.sync(), self._origin)
        self._settle()  # one that failed meanwhile does not take this one's chance
        try:
            self._checkpoints.save(progress.updates, state, saved.record(), progress.validation_loss)
            self._saved, self._writing = progress.updates, True
        except RunError as error:
            self._failed(error)

    def finish(self) -> None:
        """Wait for the last checkpoint.

        Raises:
            RunError: It could not be written.
        """
        self._settle()
        if self._failure is not None:
            raise RunError(f"the last checkpoint could not be written ({self._failure}); {self._left()}")

    def _settle(self) -> None:
        """Wait for what is being written, and see whether it succeeded."""
        if not self._writing:
            return
        self._writing = False
        try:
            self._checkpoints.wait()
            self._failure = None
        except RunError as error:
            self._failed(error)

    def _failed(self, error: RunError) -> None:
        """Tell the first failure in a row."""
        if self._failure is None:
            self._emit(Noticed(f"a checkpoint could not be written ({error}); training goes on, and {self._left()}"))
        self._failure = error

    def _left(self) -> str:
        numbers = self._checkpoints.numbers()
        return f"the one after update {numbers[0]} is the last good one" if numbers else "there is none before it"
