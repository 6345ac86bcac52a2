"""Being asked to stop: the first SIGINT (Ctrl-C) or SIGTERM ends a run in order, a second SIGINT at once."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread


class _Stop:
    """Reads the numbers of signals from a pipe, in a thread.

    Python runs handlers between two of its own instructions, which a compilation may keep waiting for minutes; the
    number of a signal is in the pipe as soon as it arrives.
    """

    def __init__(self, numbers: int):
        self._asked = Event()
        self._thread = Thread(target=self._listen, args=(numbers,), name="greats-signals", daemon=True)
        self._thread.start()

    def requested(self) -> bool:
        """Whether the run is to stop."""
        return self._asked.is_set()

    def join(self) -> None:
        """Wait until the pipe is closed and read to its end."""
        self._thread.join()

    def _listen(self, numbers: int) -> None:
        while number := os.read(numbers, 1):
            if number[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            if not self._asked.is_set():
                self._asked.set()
                _say("\ngreats: stopping after this step and saving; press Ctrl-C again to stop at once")
            elif number[0] == signal.SIGINT:
                _say("\ngreats: stopped")
                os._exit(130)  # whatever is half done is what a checkpoint survives


@contextmanager
def stop_on_signals() -> Iterator[_Stop]:
    """Turn SIGINT and SIGTERM into a request to stop, while the context lasts."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    stop = _Stop(read)
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(write)
        stop.join()
        os.close(read)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
