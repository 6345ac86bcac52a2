"""Watches the numbers of a run: updates skipped one after another, sudden losses, records without labels.

Pure bookkeeping on the events that the run reports anyway: nothing is added to the compiled step, and the same events
lead to the same verdicts, so that a run gone on with, once its guard has been shown the records so far, is guarded like
the run that was never stopped.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from greats_jax.errors import RunError
from greats_jax.training.config import GuardConfig
from greats_jax.training.events import Event, Started, Stepped

_WINDOW = 50
"""Updates whose losses a new one is compared with, and between two notices of the same kind."""

_FEWEST = 10
"""Losses that there must be before one is called sudden."""

_LEAST_RISE = 1.0
"""Nats per token: ten times a loss that is nearly zero is no accident."""


class Guard:
    """Judges the events of one run.

    Args:
        config: What to watch.
        accumulate: Micro-batches per update.
        checkpoints: Gives the updates behind each checkpoint there is, in any order.

    Attributes:
        spikes: Sudden losses so far.
    """

    def __init__(self, config: GuardConfig, accumulate: int = 1, checkpoints: Callable[[], Sequence[int]] = tuple):
        self._config, self._accumulate, self._checkpoints = config, accumulate, checkpoints
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._skipped: list[Mapping[str, Any]] = []  # the latest updates, as far as they were skipped
        self._taken = 0  # the latest update that was not
        self._notices: dict[str, int] = {}  # update of the latest notice of each kind
        self.spikes = 0

    @property
    def sound(self) -> bool:
        """Whether the latest update was made; if not, no checkpoint should take a good one's place."""
        return not self._skipped

    def check(self, event: Event) -> str | None:
        """Judge one event.

        Args:
            event: Any event of the run, in order.

        Returns:
            What a user should be told, in one line, or None.

        Raises:
            RunError: The run should not go on; the message names the last checkpoint that is known to be good.
        """
        match event:
            case Started():
                return _without_labels(event)
            case Stepped(step, metrics):
                return self._judge(step, metrics)
        return None

    def remember(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in the records of metrics.jsonl of the updates so far, without judging them again."""
        for record in records:
            if record["event"] == "step":
                self._take(record["step"], record)

    def _judge(self, step: int, metrics: Mapping[str, Any]) -> str | None:
        usual = self._take(step, metrics)
        if self._skipped:
            reason = _reason(self._skipped)
            if len(self._skipped) == self._config.skipped_in_a_row:
                raise RunError(
                    f"the last {len(self._skipped)} updates, up to {step}, were all skipped: {reason}; "
                    f"{self._good_before(self._taken)}; guards.skipped_in_a_row says when to stop"
                )
            return self._notice("skipped", step, f"update {step} was skipped: {reason}")
        if usual is None:
            return None
        text = f"the loss of update {step} is {metrics['loss']:.4g}, the median of those before {usual:.4g}"
        if self._config.on_spike == "stop":
            raise RunError(f"{text}; {self._good_before(step)}; guards.on_spike=notice would go on")
        return self._notice("spike", step, text)

    def _take(self, step: int, metrics: Mapping[str, Any]) -> float | None:
        """Count one update; returns the median loss where this one is far above it."""
        if metrics["skipped"] >= self._accumulate:
            self._skipped.append(metrics)
            return None
        self._skipped.clear()
        self._taken = step
        loss, factor = metrics["loss"], self._config.loss_spike
        if loss is None or not math.isfinite(loss):
            return None
        usual = statistics.median(self._losses) if len(self._losses) >= _FEWEST else math.inf
        self._losses.append(loss)
        if factor is None or loss <= max(factor * usual, usual + _LEAST_RISE):
            return None
        self.spikes += 1
        return usual

    def _notice(self, kind: str, step: int, text: str) -> str | None:
        """The text, unless the same was said a short while ago."""
        if step - self._notices.get(kind, -_WINDOW) < _WINDOW:
            return None
        self._notices[kind] = step
        return text

    def _good_before(self, step: int) -> str:
        """The newest checkpoint from before an update, whose own result may be what is wrong."""
        good = [number for number in self._checkpoints() if number < step]
        if not good:
            return f"there is no checkpoint from before update {step}, so begin again"
        return f"the last good checkpoint is that of update {max(good)}: later ones may hold what is wrong"


def _reason(skipped: Sequence[Mapping[str, Any]]) -> str:
    """Why updates were skipped."""
    candidates = sum(metrics["rejected_candidates"] for metrics in skipped)
    validation = sum(metrics["rejected_validation"] for metrics in skipped)
    if not candidates and not validation:
        return "no candidate has a label to learn from"
    parts = [(candidates, "candidates"), (validation, "validation rows")]
    counted = " and ".join(f"{count:,} {what}" for count, what in parts if count)
    return f"{counted} with a loss or gradient that is not finite; a lower optimizer.learning_rate may help"


def _without_labels(event: Started) -> str | None:
    """What to say of a pool most of whose records could not enter it for want of a label."""
    counts = {
        reason: sum(reasons.get(reason, 0) for reasons in event.dropped.values())
        for reason in ("no_labels", "cut_away")
    }
    lost = sum(counts.values())
    if lost <= event.pool:
        return None
    advice = (
        f"raise data.max_length ({event.config.data.max_length})"
        if counts["cut_away"] > counts["no_labels"]
        else "look at the roles and fields of data.sources"
    )
    return f"{lost:,} of {lost + event.pool:,} records have no label to learn from and are left out; {advice}"
