"""Charts of what methods came to in the end: their differences, and how they depend on a setting."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from greats_jax.experiments.numbers import MISSING, listed
from greats_jax.experiments.outcomes import RANDOM, Outcome
from greats_jax.experiments.report.curve_charts import leave_out, logarithmic, title_of
from greats_jax.experiments.report.document import Chart, Key, Table
from greats_jax.experiments.report.pictures import line_style
from greats_jax.experiments.report.styles import INK, PAPER, styles_of_methods
from greats_jax.experiments.statistics import Difference
from greats_jax.experiments.wording import change, exponential, perplexity, relative

_FAR = 5.0  # times as far from 0 as all others: such a method would leave these no room
_NEAR = 25.0  # percent; less is never far
_MARGIN = 0.06  # of the axis, on either side
_LONGEST = 34  # characters below a picture that can stand side by side


class _Row(NamedTuple):
    """A method, and its differences to a reference at equal updates and in equal time."""

    method: str
    at_end: Difference
    in_time: Difference | None

    def values(self) -> list[float]:
        """Means and limits in percent of the perplexity; infinite where that overflows."""
        known = [one for one in (self.at_end, self.in_time) if one is not None]
        found = [_in_percent(value) for one in known for value in (one.mean, one.low, one.high)]
        return [value for value in found if not math.isnan(value)]


def difference_chart(found: Sequence[Outcome], reference: str, setting: str = "", suffix: str = "") -> Chart | None:
    """Difference of every method to a reference with its interval; None where there is none.

    A method that is far off is shown at the edge with its number, so that the others can be told apart.

    Args:
        found: Of one setting.
        reference: random_k or regular.
        setting: What the picture is about, where there are several.
        suffix: Added to the chart's name.
    """
    rows = _rows(found, reference)
    if not rows:
        return None
    left, right, beyond = _limits(rows)

    def draw(axes: Any) -> None:
        axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_xlim(left, right)
        for row, one in enumerate(rows):
            _interval(axes, row - 0.2, one.at_end, 1)
            _interval(axes, row + 0.2, one.in_time, 2)
        axes.set_yticks(range(len(rows)), [one.method for one in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("difference in perplexity (left is better)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g} %")
        axes.locator_params(axis="x", nbins=6)

    table = Table(
        ("method", "equal updates", "equal time"),
        tuple((one.method, relative(one.at_end), relative(one.in_time)) for one in rows),
        caption=f"Difference of the perplexity to that of {reference}, within seeds.",
    )
    says = f"The difference of each method's perplexity to that of {reference}, with its 95 % interval."
    if beyond:
        says += f" Beyond the picture: {listed(beyond)}."
    keys = (Key("equal updates", 1), Key("equal time", 2))
    height = max(0.45, 0.2 + 0.075 * len(rows))
    return Chart(f"against-{reference}{suffix}", f"Against {reference}", says, draw, table, keys, height, setting)


def _rows(found: Sequence[Outcome], reference: str) -> list[_Row]:
    if reference == RANDOM:
        every = [(o.method, o.against_random, o.against_random_in_time) for o in found]
    else:
        every = [(o.method, o.against_regular, o.against_regular_in_time) for o in found]
    return [_Row(method, at_end, in_time) for method, at_end, in_time in every if at_end is not None and at_end.n]


def _limits(rows: Sequence[_Row]) -> tuple[float, float, list[str]]:
    """The axis that all methods need but those far off to the right, and which these are."""
    inside = sorted((one for one in rows if one.values()), key=lambda one: max(one.values()))
    beyond: list[str] = []
    while inside:
        others = [abs(value) for one in inside[:-1] for value in one.values() if math.isfinite(value)]
        reach = max(inside[-1].values())
        if math.isfinite(reach) and not (others and reach > max(_FAR * max(others), _NEAR)):
            break
        beyond.append(inside.pop().method)
    values = [0.0, *(value for one in inside for value in one.values())]
    low, high = min(values), max(values)
    room = _MARGIN * (high - low) or 1.0
    return low - room, high + (4 if beyond else 1) * room, beyond[::-1]


def _interval(axes: Any, row: float, difference: Difference | None, look: int) -> None:
    """A mean with its interval; an arrow at the edge, with its number, where the mean is beyond it."""
    if difference is None or math.isnan(difference.mean):
        return
    low, mean, high = (_in_percent(x) for x in (difference.low, difference.mean, difference.high))
    style = line_style(look)
    edge = axes.get_xlim()[1]
    if mean > edge:
        axes.plot([edge], [row], **(style | {"linestyle": "none", "marker": ">", "markersize": 6, "clip_on": False}))
        axes.annotate(
            f"{change(difference.mean)} %",
            (edge, row),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center_baseline",
            fontsize=8.5,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
        )
        return
    if not math.isnan(low) and not math.isnan(high):
        axes.plot([low, min(high, edge)], [row, row], color=style["color"], linewidth=1.8, linestyle=style["linestyle"])
        if high > edge:
            mark = {"linestyle": "none", "marker": ">", "markersize": 4, "clip_on": False}
            axes.plot([edge], [row], **(style | mark))
    axes.plot([mean], [row], **(style | {"linestyle": "none", "markersize": 6}))


def _in_percent(difference: float) -> float:
    return 100 * (exponential(difference) - 1)


def setting_chart(found: Sequence[Outcome]) -> Chart:
    """The final loss of every method in each setting."""
    settings = list(dict.fromkeys(outcome.setting for outcome in found))
    methods = list(dict.fromkeys(outcome.method for outcome in found))
    styles = styles_of_methods(methods)
    by = {(outcome.setting, outcome.method): outcome.final for outcome in found}
    metric = found[0].metric
    label, names = names_of_settings(settings)

    def draw(axes: Any) -> None:
        for number, method in enumerate(methods):
            offset = 0.07 * (number - (len(methods) - 1) / 2)
            places = [i for i, setting in enumerate(settings) if (setting, method) in by]
            values = [by[settings[i], method] for i in places]
            look = line_style(styles[method])
            axes.plot([i + offset for i in places], [exponential(v.mean) for v in values], **look)
            for i, value in zip(places, values, strict=True):
                if math.isfinite(value.low):
                    limits = [exponential(value.low), exponential(value.high)]
                    axes.plot([i + offset] * 2, limits, color=look["color"], linewidth=1.2)
        crowded = sum(map(len, names.values())) > _LONGEST
        turned: Mapping[str, Any] = {"rotation": 20, "ha": "right"} if crowded else {}
        axes.set_xticks(range(len(settings)), [names[setting] for setting in settings], **turned)
        axes.set_xlabel(label)
        axes.grid(axis="x", visible=False)
        leave_out(
            axes, {m: np.array([v for (_, name), one in by.items() if name == m for v in one[:3]]) for m in methods}
        )
        logarithmic(axes)

    table = Table(
        ("setting", *methods),
        tuple((s, *(perplexity(by[s, m]) if (s, m) in by else MISSING for m in methods)) for s in settings),
        caption=f"{title_of(metric)} at the end, mean and 95 % interval.",
    )
    says = f"{title_of(metric)} at the end, for every setting and method."
    keys = tuple(Key(method, styles[method]) for method in methods)
    return Chart("settings", f"{title_of(metric)} at the end", says, draw, table, keys)


def names_of_settings(settings: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The key that all settings are values of, and these values; "" and the settings where they share none."""
    keys = {re.sub(r"=[^=]*$", "", setting) if "=" in setting else "" for setting in settings}
    if len(keys) != 1 or keys == {""}:
        return "", {setting: setting for setting in settings}
    (key,) = keys
    return key, {setting: setting[len(key) + 1 :] for setting in settings}
