"""Numbers, files and advice from the outcomes of a fidelity analysis."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from greats_jax.analysis.correlation import pearson, spearman
from greats_jax.analysis.taylor_run import GRADIENT_DESCENT, OPTIMIZER, PREDICTIONS, Outcome, TaylorResult
from greats_jax.training.jsonl import dumps

RULES = {"first order": "greats_first_order", "Gram matrix": "greats", "preconditioned": "greats_adam"}
"""The rules that rank candidates by a prediction."""

_GOOD, _SOME = 0.7, 0.4
"""Rank correlations from which scores rank well, and from which they rank at all. A judgement, not a theorem: choosing
by a score of correlation r recovers about r of what the best choice would gain over a random one."""

_TOLD_APART = 10.0  # roundings of the loss that changes must differ by, for their order to be more than noise


@dataclass(frozen=True)
class Fit:
    """How well one prediction fits, over the subsets of a kind of step and a rate.

    Correlations are taken within each batch of candidates, as selection compares within one, and averaged.

    Attributes:
        step: Kind of step.
        rate: Learning rate.
        prediction: Name of the prediction.
        subsets: Subsets compared.
        pearson: Mean over batches; NaN where nothing differs.
        spearman: Mean over batches.
        spearman_of_batches: That of each batch.
        pooled_pearson: Over all subsets, which also sees how batches differ.
        pooled_spearman: The same for ranks.
        error: Root mean square of prediction minus actual change, in units of the root mean square of the change.
        recovered: Gain of the subset predicted best over the batch's mean, as a share of the gain of the actually best.
    """

    step: str
    rate: float
    prediction: str
    subsets: int
    pearson: float
    spearman: float
    spearman_of_batches: tuple[float, ...]
    pooled_pearson: float
    pooled_spearman: float
    error: float
    recovered: float


def fits(outcomes: Sequence[Outcome]) -> list[Fit]:
    """The fit of every prediction for every kind of step and rate, rates ascending."""
    found = []
    for step, names in PREDICTIONS.items():
        for rate in sorted({outcome.rate for outcome in outcomes}):
            these = [outcome for outcome in outcomes if outcome.step == step and outcome.rate == rate]
            found += [_fit(these, step, rate, name) for name in names]
    return found


def spread(outcomes: Sequence[Outcome]) -> float:
    """Standard deviation of the actual changes within a batch, nats per token; mean over batches."""
    return _mean([float(np.std([outcome.actual for outcome in group])) for group in _by_batch(outcomes)])


def advice(result: TaylorResult, found: Sequence[Fit]) -> str:
    """One plain statement: whether ranking by predictions can work for this model, optimizer and rate, or why not."""
    rate = result.rate
    main = [outcome for outcome in result.outcomes if outcome.step == OPTIMIZER and outcome.rate == rate]
    at = f"At learning rate {rate:g}"
    if (differ := spread(main)) < _TOLD_APART * result.resolution:
        return (
            f"{at} the subsets' effects differ by {differ:.1e} nats, which is within the rounding of the loss "
            f"({result.resolution:.0e}), so nothing can be said: raise --learning-rate, or set model.dtype=float32."
        )
    fit = {f.prediction: f for f in found if f.step == OPTIMIZER and f.rate == rate}
    first, geared, update = (fit[name].spearman for name in ("first order", "preconditioned", "update"))
    better = geared > first + 0.1 or math.isnan(first)
    best, name = (geared, "preconditioned") if better else (first, "first order")
    scores = "Adam-aware scores" if better else "first-order scores"
    said = f"{at} {scores} rank subsets with Spearman {best:.2f}"
    said += f" (first-order ones {first:.2f})" if better else ""
    if best >= _GOOD:
        return f"{said}: selection can work here, e.g. with method={RULES[name]}."
    if best >= _SOME:
        return f"{said}: selection can work in part; expect a part of its gain from method={RULES[name]}."
    if update >= _GOOD:
        return (
            f"{said}, so selection by them is close to chance; the first order of the real update ranks with "
            f"{update:.2f}, so the rate is not the reason but what the optimizer makes of a gradient (its history, "
            "momentum, clipping): try more updates with --after, or optimizer.clip=null."
        )
    lower = [f for f in found if f.step == OPTIMIZER and f.prediction == "update" and f.rate < rate]
    holds = [f.rate for f in lower if f.spearman >= _GOOD]
    why = f"at {max(holds):g} its first order does hold: lower optimizer.learning_rate" if holds else (
        "not at the lower rates tried either, so these validation examples may be too few or too unlike the candidates"
    )  # fmt: skip
    return f"{said}, so selection by them is close to chance: the step is too long for a straight line; {why}."


def write_report(result: TaylorResult, found: Sequence[Fit], folder: Path) -> list[Path]:
    """Write `taylor.json` (settings, every fit, the advice) and `taylor.csv` (every outcome); return their paths."""
    config = result.config
    numbers = {
        "model": config.model.source,
        "optimizer": asdict(config.optimizer),
        "learning_rate": result.rate,
        "after": result.plan.after,
        "batch": config.batch,
        "keep": result.keep,
        "validation_rows": result.validation,
        "seed": config.seed,
        "batches": len({outcome.batch for outcome in result.outcomes}),
        "candidates_left_out": result.left_out,
        "resolution": result.resolution,
        "advice": advice(result, found),
        "fits": [asdict(fit) for fit in found],
    }
    summary = folder / "taylor.json"
    summary.write_text(json.dumps(json.loads(dumps(numbers)), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    names = list(dict.fromkeys(name for group in PREDICTIONS.values() for name in group))
    table = folder / "taylor.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["batch", "subset", "members", "step", "rate", "validation_loss", "actual", *names])
        for outcome in result.outcomes:
            values = [outcome.predictions.get(name, math.nan) for name in names]
            writer.writerow(
                [outcome.batch, outcome.subset, " ".join(outcome.members), outcome.step, f"{outcome.rate:g}",
                 float(outcome.before), float(outcome.actual), *("" if math.isnan(v) else float(v) for v in values)]
            )  # fmt: skip
    return [summary, table]


def tables(result: TaylorResult, found: Sequence[Fit]) -> list[list[tuple[str, ...]]]:
    """What the terminal shows: every prediction at the main rate, then rank correlations over the rates."""
    rows: list[tuple[str, ...]] = [("step", "predicted by", "subsets", "Spearman", "Pearson", "error", "gain")]
    for fit in found:
        if fit.rate == result.rate:
            numbers = (_two(fit.spearman), _two(fit.pearson), _percent(fit.error), _percent(fit.recovered))
            rows.append((_step_name(result, fit.step), fit.prediction, str(fit.subsets), *numbers))
    rates = sorted({fit.rate for fit in found})
    sweep: list[tuple[str, ...]] = [("step", "Spearman at rate", *(f"{rate:g}" for rate in rates))]
    for step, names in PREDICTIONS.items():
        for name in names:
            values = [f.spearman for f in found if f.step == step and f.prediction == name]
            sweep.append((_step_name(result, step), name, *map(_two, values)))
    return [rows, sweep]


def _step_name(result: TaylorResult, step: str) -> str:
    return GRADIENT_DESCENT if step == GRADIENT_DESCENT else result.config.optimizer.name


def _fit(outcomes: Sequence[Outcome], step: str, rate: float, name: str) -> Fit:
    kept = [outcome for outcome in outcomes if not math.isnan(outcome.predictions[name])]
    groups = _by_batch(kept)
    actual, predicted = _columns(kept, name)
    by_rank = tuple(_correlate(spearman, group, name) for group in groups)
    size = math.sqrt(np.mean(actual**2)) if len(kept) else math.nan
    return Fit(
        step=step,
        rate=rate,
        prediction=name,
        subsets=len(kept),
        pearson=_mean([_correlate(pearson, group, name) for group in groups]),
        spearman=_mean(by_rank),
        spearman_of_batches=by_rank,
        pooled_pearson=pearson(actual, predicted),
        pooled_spearman=spearman(actual, predicted),
        error=math.sqrt(np.mean((predicted - actual) ** 2)) / size if size > 0 else math.nan,
        recovered=_mean([_recovered(group, name) for group in groups]),
    )


def _recovered(outcomes: Sequence[Outcome], name: str) -> float:
    actual, predicted = _columns(outcomes, name)
    possible = actual.mean() - actual.min()
    return float((actual.mean() - actual[predicted.argmin()]) / possible) if possible > 0 else math.nan


def _correlate(measure: Callable[[Any, Any], float], outcomes: Sequence[Outcome], name: str) -> float:
    return measure(*_columns(outcomes, name))


def _columns(outcomes: Sequence[Outcome], name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array([(outcome.actual, outcome.predictions[name]) for outcome in outcomes]).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _by_batch(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    numbers = dict.fromkeys(outcome.batch for outcome in outcomes)
    return [[outcome for outcome in outcomes if outcome.batch == number] for number in numbers]


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return float(np.mean(present)) if present else math.nan


def _two(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}" if value < 100 else f"{value:.0e}"
