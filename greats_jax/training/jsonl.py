"""JSON lines on disk: every line complete as soon as it is written, and standard JSON whatever the numbers."""

import json
import math
import os
from pathlib import Path
from typing import Any

from greats_jax.errors import RunError


class JsonLines:
    """A file of one JSON object a line, written at its end.

    A reader may follow it while it grows, and a killed run loses at most the line being written.

    Args:
        path: The file, created where there is none.
        keep: Bytes of what it holds that stay; None for all.

    Raises:
        RunError: It cannot be written; also from `write` and `sync`.
    """

    def __init__(self, path: Path, keep: int | None = None):
        self._path = path
        try:
            # Without a buffer: what a full disk refuses is not tried again when the file is closed.
            self._file = path.open("ab", buffering=0)
            if keep is not None:
                self._file.truncate(keep)
        except OSError as error:
            raise self._unwritable(error) from error

    def write(self, record: dict[str, Any]) -> None:
        """Append one record and hand it to the operating system; NaN and infinities become null."""
        line = memoryview((dumps(record) + "\n").encode())
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def sync(self) -> int:
        """Make sure that all of it is on the disk, and return its length in bytes."""
        try:
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self._path}: cannot be written ({error.strerror or error}); what was written before is whole: make "
            "room or mend the folder, then go on"
        )


def dumps(value: Any) -> str:
    """JSON without the NaN and Infinity that the standard does not have; dates and the like as text."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=str)


def read_json_lines(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """Every complete record of a file; a last line cut short by a killed run is left out.

    Args:
        path: The file.
        size: Bytes of it that are read; None for all.

    Raises:
        RunError: It cannot be read, or a line before the last is not a JSON object.
    """
    try:
        lines = path.read_bytes()[:size].split(b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error}); the run folder is damaged") from None
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif number < len(lines):
            raise RunError(f"{path}:{number}: not a JSON record; the run folder is damaged")
    return records


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
