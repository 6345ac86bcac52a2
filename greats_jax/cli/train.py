"""`greats train`."""

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from greats_jax.cli.console import Console, closing_table
from greats_jax.training.config_loading import load_config
from greats_jax.training.result import RunResult
from greats_jax.training.trainer import Trainer


def train(config_path: str, overrides: Sequence[str]) -> int:
    """Train, show progress, and end with a table of what happened and where everything is."""
    config = load_config(config_path, overrides)
    with _stop_on_interrupt() as stop:
        result = Trainer(config, trackers=[Console()], should_stop=stop.requested).fit()
    print()
    print(closing_table(result.summary))
    print()
    print(where_everything_is(result))
    if result.status == "interrupted":
        print(f"greats: interrupted after {result.summary['steps']} updates; what was done is in {result.folder}",
              file=sys.stderr)  # fmt: skip
        return 130
    return 0


def where_everything_is(result: RunResult) -> str:
    """The paths of a run, one a line."""
    places = [("run folder", result.folder), ("weights", result.weights)]
    places += [("curve", path) for path in result.plots]
    width = max(len(name) for name, _ in places)
    return "\n".join(f"{name.ljust(width)}  {path}" for name, path in places)


class _Stop:
    """Remembers that the user asked to stop."""

    def __init__(self) -> None:
        self._requested = False

    def requested(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._requested

    def request(self, number: int, frame: FrameType | None) -> None:
        """First Ctrl-C: finish the step and save. Second: stop at once."""
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True
        print("\ngreats: stopping after this step; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)


@contextmanager
def _stop_on_interrupt() -> Iterator[_Stop]:
    """Ctrl-C asks the trainer to stop between two steps, where its state is whole."""
    stop = _Stop()
    previous = signal.signal(signal.SIGINT, stop.request)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
