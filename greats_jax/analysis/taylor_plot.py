"""Pictures of a fidelity analysis as PNG files; matplotlib is the extra `plots`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from greats_jax.analysis.taylor_report import RULES, Fit
from greats_jax.analysis.taylor_run import GRADIENT_DESCENT, OPTIMIZER, PREDICTIONS, Outcome, TaylorResult
from greats_jax.training.plots import figure_class, plain_text


def plot_taylor(result: TaylorResult, found: Sequence[Fit], folder: Path) -> list[Path]:
    """Draw predicted against actual changes for both kinds of step, and how the fit depends on the rate.

    Args:
        result: The outcomes.
        found: Their fits.
        folder: Where the files go; it exists.

    Returns:
        The files written.

    Raises:
        RunError: matplotlib is not installed.
    """
    with plain_text():
        return _plot(result, found, folder)


def _plot(result: TaylorResult, found: Sequence[Fit], folder: Path) -> list[Path]:
    make_figure = figure_class()
    names = {GRADIENT_DESCENT: "gradient descent", OPTIMIZER: result.config.optimizer.name}
    files = {GRADIENT_DESCENT: "predictions-gradient-descent.png", OPTIMIZER: "predictions-optimizer.png"}
    paths = []
    for step, file in files.items():
        count = len(PREDICTIONS[step])
        figure = make_figure(figsize=(3.6 * count, 3.9), layout="constrained")
        figure.suptitle(
            f"{names[step]}, learning rate {result.rate:g}: change of the validation loss (nats per token) by a step "
            f"on {result.keep} of {result.config.batch} candidates"
        )
        rows = [outcome for outcome in result.outcomes if outcome.step == step and outcome.rate == result.rate]
        fits = {fit.prediction: fit for fit in found if fit.step == step and fit.rate == result.rate}
        for axes, name in zip(figure.subplots(1, count, squeeze=False)[0], PREDICTIONS[step], strict=True):
            _draw_prediction(axes, rows, fits[name])
        figure.savefig(folder / file, dpi=130)
        paths.append(folder / file)
    figure = make_figure(figsize=(10.0, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    for column, step in enumerate(files):
        _draw_rates(panels[:, column], [fit for fit in found if fit.step == step], names[step], result.rate)
    figure.savefig(folder / "rates.png", dpi=130)
    return [*paths, folder / "rates.png"]


def _draw_prediction(axes: Any, outcomes: Sequence[Outcome], fit: Fit) -> None:
    name = fit.prediction
    for batch in sorted({outcome.batch for outcome in outcomes}):
        points = [(o.predictions[name], o.actual) for o in outcomes if o.batch == batch]
        axes.scatter(*np.array(points).T, s=14, alpha=0.7, linewidths=0)
    # The line where prediction and fact agree must not widen the view: a prediction may be off by a constant factor.
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    axes.axline((0, 0), slope=1, color="0.4", linewidth=1, linestyle="--", zorder=0)
    axes.set(xlim=(left, right), ylim=(bottom, top), xlabel="predicted", ylabel="actual")
    rule = f" ({RULES[name]})" if name in RULES else ""
    axes.set_title(f"{name}{rule}\nPearson {fit.pearson:.2f}, Spearman {fit.spearman:.2f}", fontsize=10)
    axes.locator_params(nbins=5)
    for axis in (axes.xaxis, axes.yaxis):  # without a common exponent, which would be written over the title
        axis.set_major_formatter(lambda value, _: f"{value:.3g}")


def _draw_rates(panels: Any, found: Sequence[Fit], title: str, main: float) -> None:
    above, below = panels
    for name in dict.fromkeys(fit.prediction for fit in found):
        these = [fit for fit in found if fit.prediction == name]
        rates = [fit.rate for fit in these]
        # Predictions that coincide at low rates would hide each other: different open markers show them all.
        style: dict[str, Any] = {"marker": "osD^v"[len(above.lines) % 5], "fillstyle": "none", "label": name}
        above.plot(rates, [fit.spearman for fit in these], **style)
        below.plot(rates, [max(fit.error, 1e-4) for fit in these], **style)
    for axes in panels:
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
        axes.axvline(main, color="0.8", linewidth=6, zorder=0)
    above.axhline(0, color="0.8", linewidth=1, zorder=0)
    above.set(ylim=(-1.05, 1.05), ylabel="Spearman, mean of batches", title=title)
    below.set(yscale="log", ylabel="error / size of the change", xlabel="learning rate (grey: the one analysed)")
    _plain_numbers(below.yaxis)
    below.axhline(1, color="0.8", linewidth=1, zorder=0)
    above.legend(loc="lower left", fontsize=9, framealpha=1)


def _plain_numbers(axis: Any) -> None:
    """Numbers of a logarithmic axis without the formulas that matplotlib writes them as."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter())
