"""Rules of the user's own, from Python files that a configuration names."""

import os
import runpy
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from greats_jax.errors import ConfigError


def load_rules(files: Sequence[str]) -> None:
    """Run the files, once each, so that the rules in them are registered.

    Raises:
        ConfigError: A file is not there, or fails.
    """
    for file in files:
        if not os.path.isfile(file):  # unlike Path's, it says no to a name that no file can have
            raise ConfigError(f"rules: {file}: there is no such file; name Python files that register selection rules")
        _run(Path(file).resolve(), file)


@cache
def _run(path: Path, named: str) -> None:
    try:
        runpy.run_path(str(path))
    except Exception as error:  # whatever the user's code raises is the user's to mend
        reason = " ".join(str(error).split())
        raise ConfigError(f"rules: {named} fails with {type(error).__name__}: {reason}") from error
