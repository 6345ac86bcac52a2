"""Charts of what was measured in the course of training."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from greats_jax.experiments.curves import Curve
from greats_jax.experiments.numbers import MISSING, listed, number
from greats_jax.experiments.report.bands import Band, band
from greats_jax.experiments.report.document import Chart, Key, Table
from greats_jax.experiments.report.members import Member
from greats_jax.experiments.report.pictures import line_style
from greats_jax.experiments.report.styles import PAPER
from greats_jax.experiments.wording import is_loss

_LABELS = {"steps": "updates", "seconds": "seconds of training", "candidates": "candidates seen"}
_AGAINST = {"steps": "by updates", "seconds": "by training time", "candidates": "by candidates"}
_FAR = 2.0  # times as far above the others as these lie apart, in nats: such a method would leave them no room
_NEAR = 0.5  # nats; less above is never far
_SMOOTHED = 40  # points of a training loss, which is noisy


def title_of(metric: str) -> str:
    """A metric in words: test_loss is the test perplexity."""
    task, _, name = metric.rpartition("/")
    words = name.replace("_loss", "_perplexity").replace("_", " ")
    return f"{words[:1].upper()}{words[1:]}{f' ({task})' if task else ''}"


def shown(metric: str, value: float) -> float:
    """A value as it is shown."""
    return math.exp(min(value, 700.0)) if is_loss(metric) else value


def curve_chart(
    curves: Sequence[Curve],
    metric: str,
    axis: str,
    styles: Mapping[str, int],
    asked: Sequence[str] = (),
    suffix: str = "",
    setting: str = "",
) -> Chart | None:
    """One metric against updates, seconds or candidates, a line for each method.

    Args:
        curves: Of one setting.
        metric: Name of the metric.
        axis: One of `bands.AXES`.
        styles: Style of each method.
        asked: Methods to point out.
        suffix: Added to the chart's name.
        setting: What the picture is about, where there are several.

    Returns:
        The chart; None where nothing was measured twice.
    """
    found: dict[str, Band] = {}
    for method in dict.fromkeys(curve.method for curve in curves):
        own = [curve for curve in curves if curve.method == method]
        if axis == "candidates" and not any(curve.draws for curve in own):
            continue
        one = band(own, metric, axis)
        if one is not None:
            found[method] = one
    if not found:
        return None

    def draw(axes: Any) -> None:
        for method, one in found.items():
            look = line_style(styles[method])
            places, mean, low, high = (_visible(metric, values) for values in (one.places, one.mean, one.low, one.high))
            places = one.places
            if len(one.seeds) > 1 and not np.isfinite(low).any():
                for seed in one.seeds:
                    axes.plot(places, _visible(metric, seed), color=look["color"], linewidth=0.6, alpha=0.6)
            axes.fill_between(places, low, high, color=look["color"], alpha=0.16, linewidth=0)
            many = max(1, len(places) // 8)
            look |= {"linewidth": 2.4, "zorder": 3} if method in asked else {}
            axes.plot(places, mean, **look, markevery=many)
        axes.set_xlabel(_LABELS[axis])
        if is_loss(metric):
            leave_out(axes, {method: np.stack([one.mean, one.low, one.high]) for method, one in found.items()})
            logarithmic(axes)
        axes.margins(x=0.02)

    ends = [(method, shown(metric, float(one.mean[-1]))) for method, one in found.items()]
    says = f"{title_of(metric)} {_AGAINST[axis]}. At the end: " + listed([f"{m} {number(v)}" for m, v in ends]) + "."
    name = re.sub(r"[^\w-]+", "-", f"{metric}-{axis}{suffix}")
    title = f"{title_of(metric)} {_AGAINST[axis]}"
    keys = tuple(Key(m, styles[m]) for m in found)
    return Chart(name, title, says, draw, _table(found, metric, axis), keys, of=setting)


def perplexity_chart(member: Member) -> Chart | None:
    """Validation and test perplexity of one run."""
    lines = {}
    for split in ("test", "validation"):
        known = [(r["step"], r[f"{split}_loss"]) for r in member.evaluations if r.get(f"{split}_loss") is not None]
        if len(known) > 1:
            lines[split] = np.array(known, np.float64).T
    if not lines:
        return None
    look = {"test": 1, "validation": 5}

    def draw(axes: Any) -> None:
        for split, (places, values) in lines.items():
            axes.plot(
                places, _visible("test_loss", values), **line_style(look[split]), markevery=max(1, len(places) // 8)
            )
        axes.set_xlabel("updates")
        logarithmic(axes)

    places = sorted({place for line in lines.values() for place in line[0].tolist()})
    cells = {split: dict(zip(*line.tolist(), strict=True)) for split, line in lines.items()}
    rows = (
        (
            number(place),
            *(number(shown("test_loss", own[place])) if place in own else MISSING for own in cells.values()),
        )
        for place in places
    )
    says = "Perplexity of the test and the validation examples by updates."
    keys = tuple(Key(split, look[split]) for split in lines)
    return Chart("perplexity", "Perplexity", says, draw, Table(("updates", *lines), tuple(rows)), keys)


def training_chart(member: Member) -> Chart | None:
    """Loss of what one run learned from, and of all its candidates where the rule looked at them."""
    steps = member.steps
    lines = {"kept examples": _smooth(steps, "loss"), "all candidates": _smooth(steps, "candidate_loss")}
    lines = {name: line for name, line in lines.items() if line is not None}
    if not lines:
        return None
    look = {"kept examples": 1, "all candidates": 0}

    def draw(axes: Any) -> None:
        for name, line in lines.items():
            axes.plot(*line, **line_style(look[name]), markevery=max(1, len(line[0]) // 8))
        axes.set_xlabel("updates")

    rows = []
    for i, place in enumerate(next(iter(lines.values()))[0]):
        cells = (number(float(line[1][i])) if i < len(line[1]) else MISSING for line in lines.values())
        rows.append((number(float(place)), *cells))
    says = "Training loss in nats per token; each point is the mean of neighbouring updates."
    table = Table(("updates", *lines), tuple(rows), caption=says)
    return Chart(
        "training-loss", "Training loss (nats per token)", says, draw, table, tuple(Key(n, look[n]) for n in lines)
    )


def _smooth(steps: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Means over equal parts of a run of what can be jagged."""
    known = [(record["step"], record[name]) for record in steps if record.get(name) is not None]
    if len(known) < 2:
        return None
    parts = np.array_split(np.array(known, np.float64), min(_SMOOTHED, len(known)))
    places, values = np.array([part.mean(axis=0) for part in parts]).T
    return places, values


def _table(found: Mapping[str, Band], metric: str, axis: str) -> Table:
    """The means at the places of the first method, or at ten places that all methods have."""
    bands = list(found.values())
    places = bands[0].places
    if any(len(one.places) != len(places) or (one.places != places).any() for one in bands):
        places = np.linspace(0, max(one.places[-1] for one in bands), 9)
    if len(places) > 24:
        places = places[np.unique(np.linspace(0, len(places) - 1, 20).astype(int))]
    rows = []
    for place in places:
        cells = []
        for one in bands:
            inside = one.places[0] <= place <= one.places[-1]
            mean, low, high = (float(np.interp(place, one.places, v)) for v in (one.mean, one.low, one.high))
            text = number(shown(metric, mean)) if inside else MISSING
            if inside and math.isfinite(low):
                text += f" [{number(shown(metric, low))}, {number(shown(metric, high))}]"
            cells.append(text)
        rows.append((number(float(place)), *cells))
    return Table(
        (_LABELS[axis], *found), tuple(rows), caption=f"{title_of(metric)}: mean and 95 % interval over seeds."
    )


def _visible(metric: str, values: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(values, 700.0)) if is_loss(metric) else values


def leave_out(axes: Any, losses: Mapping[str, np.ndarray]) -> None:
    """Let the axis of perplexities end where all methods do but those far above, and name these at its upper edge."""
    spans = {name: values[np.isfinite(values)] for name, values in losses.items()}
    inside = sorted((name for name in spans if spans[name].size), key=lambda name: spans[name].max())
    above: list[str] = []
    while len(inside) > 2:  # of two, each is what the other is seen against
        others = np.concatenate([spans[name] for name in inside[:-1]])
        if spans[inside[-1]].max() - others.max() <= max(_FAR * (others.max() - others.min()), _NEAR):
            break
        above.append(inside.pop())
    if not above:
        return
    kept = np.concatenate([spans[name] for name in inside])
    room = 0.05 * (kept.max() - kept.min()) + 1e-3
    axes.set_ylim(*(math.exp(min(value, 700.0)) for value in (kept.min() - room, kept.max() + 3 * room)))
    said = [f"{name} to {number(shown('_loss', float(spans[name].max())))}" for name in above[::-1]]
    box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1, "alpha": 0.8}
    place = {"transform": axes.transAxes, "ha": "right", "va": "top", "fontsize": 8.5, "zorder": 5, "bbox": box}
    axes.text(0.99, 0.985, f"above: {', '.join(said)}", **place)


def logarithmic(axes: Any) -> None:
    """A logarithmic axis with plain numbers: a perplexity is the exponential of what is measured."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    steps = next(
        (steps for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)) if len(_ticks(low, high, steps)) >= 3), None
    )
    ticks = _ticks(low, high, steps) if steps else _plain_ticks(low, high)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}" if value >= 1e-4 else f"{value:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def _ticks(low: float, high: float, steps: Sequence[float]) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step * 10.0**exponent:.6g}") for exponent in exponents for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def _plain_ticks(low: float, high: float) -> list[float]:
    """Of a narrow axis, where a power of ten is far."""
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
