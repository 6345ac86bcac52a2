"""A bar that counts on standard error where that is a terminal, and lines elsewhere."""

import shutil
import sys

from tqdm import tqdm

_LINES = 20  # a command that counts prints about this many where there is no terminal


class Progress:
    """Counts things done, and says things without breaking the bar; a context manager.

    Args:
        unit: What is counted, as a plural: "examples".
    """

    def __init__(self, unit: str):
        self._unit = unit
        self._live = sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._told = -1

    def __enter__(self) -> "Progress":
        """Nothing is shown before the first count."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def say(self, text: str) -> None:
        """Print a line."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def count(self, done: int, total: int) -> None:
        """Show how many of how many are done; what the first call reports is not part of the pace."""
        if not self._live:
            part = done * _LINES // max(1, total)
            if part != self._told:
                self._told = part
                self.say(f"{done:,} of {total:,} {self._unit}")
            return
        if self._bar is None:
            # The size is asked for here: tqdm draws nothing where a terminal reports a size of 0, as some do.
            size = shutil.get_terminal_size()
            self._bar = tqdm(
                total=total, initial=done, unit=f" {self._unit}", file=sys.stderr, ncols=size.columns, nrows=size.lines
            )
        self._bar.update(done - self._bar.n)
