"""Numbers and advice from outcomes that are made up, so that the right answer is known."""

import csv
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from greats_jax.analysis.taylor_plot import plot_taylor
from greats_jax.analysis.taylor_report import advice, fits, spread, tables, write_report
from greats_jax.analysis.taylor_run import GRADIENT_DESCENT, OPTIMIZER, PREDICTIONS, Outcome, TaylorPlan, TaylorResult
from greats_jax.training.config import ModelConfig, OptimizerConfig, TrainConfig


def outcomes(quality: dict[str, float], rates: tuple[float, ...] = (0.1,), offset: float = 5.0) -> list[Outcome]:
    """Two batches that differ by `offset`; predictions of a batch are the actual change mixed with noise.

    `quality` is the share of the actual change in each prediction of the optimizer's step.
    """
    rng = np.random.default_rng(0)
    found = []
    for rate in rates:
        for batch in range(2):
            for subset in range(40):
                actual, noise = rng.normal(size=2)
                mixed = {n: offset * batch + q * actual + (1 - q) * noise for n, q in quality.items()}
                for step, names in PREDICTIONS.items():
                    predictions = {n: mixed.get(n, actual) if step == OPTIMIZER else actual for n in names}
                    found.append(Outcome(batch, subset, ("a", "b"), step, rate, 2.0, actual, predictions))
    return found


def result(quality: dict[str, float], **settings) -> TaylorResult:
    config = TrainConfig(ModelConfig("nowhere"))
    these = tuple(outcomes(quality, settings.pop("rates", (0.1,))))
    return TaylorResult(these, config, TaylorPlan(), 0.1, 4, 8, 0, settings.pop("resolution", 1e-7))


def fit_of(found, name, step=OPTIMIZER, rate=0.1):
    return next(f for f in found if (f.step, f.prediction, f.rate) == (step, name, rate))


def test_correlations_are_taken_within_batches():
    found = fits(outcomes({"first order": 0.0}))
    noise = fit_of(found, "first order")
    assert abs(noise.spearman) < 0.3  # what differs between batches is no merit of the prediction
    assert len(noise.spearman_of_batches) == 2
    exact = fit_of(found, "Hessian", GRADIENT_DESCENT)
    assert exact.spearman == pytest.approx(1)
    assert exact.error == 0
    assert exact.recovered == pytest.approx(1)


def test_error_and_recovered_gain_by_hand():
    actual, predicted = [-3.0, -1.0, 1.0], [-1.0, -2.0, 1.0]
    found = fits(
        [
            Outcome(0, i, (), OPTIMIZER, 0.1, 2.0, a, dict.fromkeys(PREDICTIONS[OPTIMIZER], p))
            for i, (a, p) in enumerate(zip(actual, predicted, strict=True))
        ]
    )
    fit = fit_of(found, "update")
    assert fit.error == pytest.approx(math.sqrt(5 / 11))
    assert fit.recovered == 0  # the subset predicted best is an average one: the mean is -1, the best -3
    assert fit.spearman == pytest.approx(0.5)


def test_predictions_that_were_not_computed_are_left_out():
    these = outcomes({})
    these = [o._replace(predictions={**o.predictions, "update": math.nan}) if o.subset else o for o in these]
    found = fits(these)
    assert fit_of(found, "update").subsets == 2
    assert fit_of(found, "first order").subsets == 80


def test_the_spread_is_within_a_batch():
    these = [Outcome(b, 0, (), OPTIMIZER, 0.1, 2.0, b * 100.0 + d, {}) for b in range(2) for d in (-1, 1)]
    assert spread(these) == 1


@pytest.mark.parametrize(
    ("quality", "said"),
    [
        ({"first order": 1.0, "preconditioned": 1.0}, "selection can work here, e.g. with method=greats_first_order"),
        ({"first order": 0.0, "preconditioned": 0.9}, "selection can work here, e.g. with method=greats_adam"),
        ({"first order": 0.4, "preconditioned": 0.4}, "in part"),
        ({"first order": 0.0, "preconditioned": 0.0}, "optimizer.clip=null"),
        ({"first order": 0.0, "preconditioned": 0.0, "update": 0.0}, "too long for a straight line"),
    ],
)
def test_the_advice_follows_the_numbers(quality, said):
    asked = result(quality)
    assert said in advice(asked, fits(asked.outcomes))


def test_the_advice_names_a_lower_rate_where_first_order_holds():
    asked = result({"first order": 0.0, "preconditioned": 0.0, "update": 0.0}, rates=(0.01, 0.1))
    these = tuple(
        o._replace(predictions=dict.fromkeys(o.predictions, o.actual)) if o.rate == 0.01 else o for o in asked.outcomes
    )
    asked = replace(asked, outcomes=these)
    assert "at 0.01 its first order does hold" in advice(asked, fits(these))


def test_no_advice_where_changes_are_no_more_than_rounding():
    asked = result({"first order": 1.0}, resolution=1.0)
    assert "nothing can be said" in advice(asked, fits(asked.outcomes))


def test_files_hold_every_number(tmp_path):
    asked = result({"first order": 1.0})
    broken = asked.outcomes[1]._replace(predictions={**asked.outcomes[1].predictions, "update": math.nan})
    asked = replace(asked, outcomes=(asked.outcomes[0], broken, *asked.outcomes[2:]))
    found = fits(asked.outcomes)
    summary, table = write_report(asked, found, tmp_path)
    numbers = json.loads(summary.read_text())
    assert len(numbers["fits"]) == 8
    assert numbers["advice"] == advice(asked, found)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == len(asked.outcomes)
    assert float(rows[0]["actual"]) == asked.outcomes[0].actual
    assert rows[1]["update"] == ""
    assert rows[0]["preconditioned"] == ""  # no prediction of gradient descent


def test_tables_show_the_main_rate_and_the_sweep():
    asked = result({"first order": 1.0}, rates=(0.01, 0.1))
    main, sweep = tables(asked, fits(asked.outcomes))
    assert len(main) == len(sweep) == 9
    assert sweep[0][2:] == ("0.01", "0.1")
    assert {row[0] for row in main[1:]} == {"gradient descent", "adamw"}


def test_pictures_write_what_is_there_and_no_formula(tmp_path):
    pytest.importorskip("matplotlib")
    made = result({"first order": 0.5}, rates=(1e-3, 1e-1))
    name: Any = r"$\nothing_{$"
    config = replace(made.config, optimizer=OptimizerConfig(name))
    paths = plot_taylor(replace(made, config=config), fits(made.outcomes), tmp_path)
    assert len(paths) == 3
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
