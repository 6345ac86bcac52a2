"""All evaluations of a comparison in one table: one row for each run and evaluation."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from greats_jax.errors import RunError
from greats_jax.experiments.curves import Curve
from greats_jax.training.run_folder import write_whole

TABLE, PLAIN_TABLE = "results.parquet", "results.csv"


def write_table(curves: Sequence[Curve], folder: Path) -> tuple[Path, Path]:
    """Write results.parquet and results.csv, in the place of what is there.

    Columns: setting, method, seed, step, seconds, candidates, candidate_tokens, trained_tokens, everything that was
    measured, folder (relative to the comparison's).

    Args:
        curves: Of the comparison's finished runs.
        folder: The comparison's folder.

    Raises:
        RunError: They cannot be written.
    """
    columns = table_columns(curves, folder)
    table, plain = folder / TABLE, folder / PLAIN_TABLE
    new = folder / f".{TABLE}.new"
    try:
        pq.write_table(pa.table(columns), new)
        new.replace(table)
    except (OSError, pa.ArrowException) as error:
        new.unlink(missing_ok=True)
        raise RunError(f"{table}: cannot be written ({' '.join(str(error).split())})") from None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*([_cell(x) for x in column] for column in columns.values()), strict=True))
    write_whole(plain, text.getvalue())
    return table, plain


def table_columns(curves: Sequence[Curve], folder: Path) -> dict[str, Sequence[Any] | np.ndarray]:
    """The columns by name, in order."""
    sizes = [len(curve.steps) for curve in curves]

    def repeated(values: Sequence[Any]) -> list[Any]:
        return [value for value, size in zip(values, sizes, strict=True) for _ in range(size)]

    def joined(arrays: Sequence[np.ndarray], kind: type) -> np.ndarray:
        return np.concatenate([*arrays, np.empty(0, kind)]).astype(kind)

    names = dict.fromkeys(name for curve in curves for name in curve.metrics)
    return {
        "setting": repeated([curve.setting for curve in curves]),
        "method": repeated([curve.method for curve in curves]),
        "seed": repeated([curve.seed for curve in curves]),
        "step": joined([curve.steps for curve in curves], np.int64),
        "seconds": joined([curve.seconds for curve in curves], np.float64),
        "candidates": joined([curve.candidates for curve in curves], np.int64),
        "candidate_tokens": joined([curve.candidate_tokens for curve in curves], np.int64),
        "trained_tokens": joined([curve.trained_tokens for curve in curves], np.int64),
        **{
            name: joined([c.metrics.get(name, np.full(len(c.steps), np.nan)) for c in curves], np.float64)
            for name in names
        },
        "folder": repeated([_relative(curve.folder, folder) for curve in curves]),
    }


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _cell(value: Any) -> Any:
    """A value as CSV has it: a number that is missing is an empty cell."""
    if isinstance(value, (float, np.floating)):
        return "" if np.isnan(value) else repr(float(value))
    return value
