"""A table of scores as Parquet, written piece by piece so that it can be stopped and continued.

Pieces are files in a folder beside the table, each complete or absent. When all are there they become the table, one
row group each, and the folder goes. A table that was interrupted is byte for byte the one that was not.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from greats_jax.errors import RunError

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("index", pa.int64()),
        ("score", pa.float32()),
        ("loss", pa.float32()),
        ("valid", pa.bool_()),
        ("tokens", pa.int32()),
    ]
)
"""One row per example of the pool, in its order; `score` and `loss` are null where there is none."""

_SETTINGS = "greats"  # key of the settings in the table's metadata, and name of their file beside the pieces


def score_columns(
    ids: Sequence[str],
    sources: Sequence[str],
    first: int,
    scores: np.ndarray,
    losses: np.ndarray,
    valid: np.ndarray,
    tokens: Sequence[int],
) -> pa.Table:
    """A piece of the table: consecutive examples of the pool, the first of them number `first`.

    NaN becomes null: sorted in descending order by a database, NaN would come first.
    """
    columns = [
        pa.array(ids, pa.string()),
        pa.array(sources, pa.string()),
        pa.array(np.arange(first, first + len(ids))),
        pa.array(scores.astype(np.float32), from_pandas=True),
        pa.array(losses.astype(np.float32), from_pandas=True),
        pa.array(valid.astype(bool)),
        pa.array(tokens, pa.int32()),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def write_table(
    output: Path,
    settings: Mapping[str, Any],
    count: int,
    make: Callable[[int], pa.Table],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write a table of `count` pieces, making only those that an earlier call has not left behind.

    Args:
        output: The file. Where it exists already with these settings, nothing is done.
        settings: Everything that the numbers depend on, as JSON values; kept in the file's metadata under `greats`.
        count: Number of pieces.
        make: `make(number)`, a pure function.
        progress: Told how many of how many pieces are there, at first and after each.

    Raises:
        RunError: The file, or what was begun of it, has other settings, is no table of scores or cannot be written.
    """
    asked: dict[str, Any] = json.loads(json.dumps(settings))
    if output.exists():
        _check_same(_settings_of(output), asked, output)
        progress(count, count)
        return
    pieces = output.with_name(output.name + ".parts")
    try:
        _begin(pieces, asked)
        there = [_is_whole(pieces / _piece(number)) for number in range(count)]
        done = sum(there)
        progress(done, count)
        for number in range(count):
            if not there[number]:
                _write(pieces / _piece(number), SCHEMA, [make(number)])
                done += 1
                progress(done, count)
        schema = SCHEMA.with_metadata({_SETTINGS: json.dumps(asked, sort_keys=True)})
        _write(output, schema, (pq.read_table(pieces / _piece(number)) for number in range(count)))
        shutil.rmtree(pieces)
    except BaseException as error:
        # Without a piece there is nothing to go on from.
        if not any(pieces.glob("*.parquet")):
            shutil.rmtree(pieces, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise RunError(f"{error.filename or output}: cannot be written ({error.strerror or error})") from None


def _begin(pieces: Path, settings: dict[str, Any]) -> None:
    """Create the folder of pieces, or make sure that it is one of this table."""
    file = pieces / f"{_SETTINGS}.json"
    if file.exists():
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            found = {}
        _check_same(found, settings, pieces)
        return
    pieces.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(unfinished, file)


def _check_same(found: dict[str, Any], wanted: dict[str, Any], place: Path) -> None:
    different = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    if not different:
        return
    key = different[0]
    others = f" and {len(different) - 1} more" if len(different) > 1 else ""
    raise RunError(
        f"{place}: holds scores made with other settings ({key}: {_short(found.get(key))} there, "
        f"{_short(wanted.get(key))} now{others}); name another --output, or remove it"
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _settings_of(output: Path) -> dict[str, Any]:
    try:
        metadata = pq.read_schema(output).metadata or {}
        return json.loads(metadata[_SETTINGS.encode()])
    except (OSError, pa.ArrowInvalid, KeyError, json.JSONDecodeError):
        raise RunError(f"{output}: exists already and is no table of scores; name another --output") from None


def _piece(number: int) -> str:
    return f"{number:06}.parquet"


def _is_whole(path: Path) -> bool:
    if not path.exists():
        return False
    try:
        return pq.read_schema(path).equals(SCHEMA)
    except pa.ArrowInvalid:
        return False


def _write(path: Path, schema: pa.Schema, groups: Any) -> None:
    """Write row groups to a file that appears under its name only when it is complete."""
    unfinished = path.with_name(path.name + ".tmp")
    with pq.ParquetWriter(unfinished, schema) as writer:
        for table in groups:
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=max(1, len(table)))
    os.replace(unfinished, path)
