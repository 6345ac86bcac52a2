"""`greats report`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from greats_jax.experiments.report import write_report


def report(folders: Sequence[str], output: str | None) -> int:
    """Write a report of runs and comparisons, and say where it is."""
    written = write_report([Path(folder) for folder in folders], None if output is None else Path(output))
    if written.missing:
        print(written.missing, file=sys.stderr)
    print(written.html)
    if written.pngs:
        print(f"{len(written.pngs)} picture{'s' * (len(written.pngs) > 1)} in {written.pngs[0].parent}")
    return 0
