"""`greats inspect`."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from greats_jax.experiments.report import as_text, build_report


def inspect(folders: Sequence[str]) -> int:
    """Print what `greats report` writes, in lines as wide as the terminal."""
    built = build_report([Path(folder) for folder in folders])
    print(as_text(built, shutil.get_terminal_size((100, 24)).columns), end="")
    return 0
