"""What was measured in the course of runs, as arrays: against updates, training time, and candidates drawn."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from greats_jax.experiments.manifest import Manifest, is_comparison
from greats_jax.experiments.reading import read_run
from greats_jax.training.result import RunResult
from greats_jax.training.step import TARGET_ONLY

_NOT_MEASURED = ("event", "step", "seconds")


class Curve(NamedTuple):
    """The evaluations of one run, in order; every array has one number for each.

    Attributes:
        setting: Value of the changing setting of a comparison; "" where nothing changes.
        method: The method, as tables name it.
        seed: The run's seed.
        steps: Updates made before, i64.
        seconds: Training time before, f64: that of the updates alone, without compilation and evaluations.
        candidates: Examples drawn before, i64.
        metrics: What was measured, by name, f64; NaN where a number is missing or not finite.
        folder: The run folder.
        candidate_tokens: Tokens of the examples drawn before, i64.
        trained_tokens: Tokens of those learned from, i64.
        draws: Whether its candidates are of the pool; target_only, whatever a comparison calls it, learns from the
            validation examples alone.
    """

    setting: str
    method: str
    seed: int
    steps: np.ndarray
    seconds: np.ndarray
    candidates: np.ndarray
    metrics: dict[str, np.ndarray]
    folder: Path
    candidate_tokens: np.ndarray
    trained_tokens: np.ndarray
    draws: bool = True


def read_curves(folder: str | Path) -> list[Curve]:
    """The curves of a comparison's finished runs, in its order, or that of a single run folder.

    Raises:
        RunError: There is neither in the folder, or a run is damaged.
    """
    folder = Path(folder)
    if not is_comparison(folder):
        return curves_of([read_run(folder)])
    listed = [run for run in Manifest.load(folder).runs if run.finished]
    return [curve_of(read_run(run.folder), run.setting, run.method, run.seed) for run in listed]


def curves_of(runs: Sequence[RunResult]) -> list[Curve]:
    """The curves of runs that belong to no comparison, by their methods and seeds."""
    return [curve_of(run, "", run.config.method, run.config.seed) for run in runs]


def curve_of(run: RunResult, setting: str, method: str, seed: int) -> Curve:
    """The curve of one run.

    Args:
        run: The run.
        setting: Value of the changing setting.
        method: The method, as tables name it.
        seed: The run's seed.
    """
    steps = [record for record in run.metrics if record["event"] == "step"]
    evaluations = [record for record in run.metrics if record["event"] == "evaluation"]
    at = np.array([record["step"] for record in evaluations], np.int64)
    numbers = np.array([record["step"] for record in steps], np.int64)
    drawn = np.array([record["step"] for record in run.selections], np.int64)
    names = list(dict.fromkeys(name for record in evaluations for name in record if _is_measured(name, record)))
    return Curve(
        setting=setting,
        method=method,
        seed=seed,
        steps=at,
        seconds=_before(at, numbers, np.cumsum(step_seconds(steps))),
        candidates=_before(at, drawn, np.cumsum([len(record["candidates"]) for record in run.selections], dtype=int)),
        metrics={name: np.array([_number(record.get(name)) for record in evaluations]) for name in names},
        folder=run.folder,
        candidate_tokens=_before(at, numbers, np.array([record["candidate_tokens"] for record in steps], np.int64)),
        trained_tokens=_before(at, numbers, np.array([record["trained_tokens"] for record in steps], np.int64)),
        draws=run.config.method != TARGET_ONLY,
    )


def step_seconds(steps: Sequence[dict[str, Any]]) -> np.ndarray:
    """Training time of each update, f64[n]: one that compiled something counts as the median of the others."""
    steady = [record["seconds"] for record in steps if not record["compiled"]]
    usual = statistics.median(steady) if steady else None
    return np.array(
        [usual if record["compiled"] and usual is not None else record["seconds"] for record in steps], np.float64
    )


def _before(at: np.ndarray, numbers: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The sum up to each of the updates `at`, from sums that stand after the updates `numbers` (ascending)."""
    sums = np.concatenate([np.zeros(1, sums.dtype), sums])
    return sums[np.searchsorted(numbers, at, side="right")]


def _is_measured(name: str, record: dict[str, Any]) -> bool:
    value = record[name]
    return name not in _NOT_MEASURED and (value is None or isinstance(value, (int, float)))


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
