"""JSON lines on disk: every line complete as soon as it is written, and standard JSON whatever the numbers."""

import json
import math
from pathlib import Path
from typing import Any

from greats_jax.errors import RunError


class JsonLines:
    """An append-only file of one JSON object a line.

    A reader may follow it while it grows, and a killed run loses at most the line being written.
    """

    def __init__(self, path: Path):
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record and hand it to the operating system; NaN and infinities become null."""
        self._file.write(dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def dumps(value: Any) -> str:
    """JSON without the NaN and Infinity that the standard does not have."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every complete record of a file; a last line cut short by a killed run is left out.

    Raises:
        RunError: A line before the last is not a JSON object.
    """
    records = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise RunError(f"{path}:{number}: not a JSON record ({error.msg}); the run folder is damaged") from None
    return records


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
