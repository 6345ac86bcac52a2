"""The sections on what came out: curves, and tables of the methods."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from greats_jax.experiments.curves import Curve
from greats_jax.experiments.outcomes import RANDOM, REGULAR, TARGET_ONLY, Outcome
from greats_jax.experiments.report.curve_charts import (
    curve_chart,
    logarithmic,
    perplexity_chart,
    title_of,
    training_chart,
)
from greats_jax.experiments.report.document import Block, Chart, Charts, Heading, Key, Section, Table
from greats_jax.experiments.report.members import Members
from greats_jax.experiments.report.numbers import MISSING, duration, percent
from greats_jax.experiments.report.pictures import line_style
from greats_jax.experiments.report.styles import INK, styles_of_methods
from greats_jax.experiments.statistics import Difference, Interval
from greats_jax.experiments.wording import exponential, is_loss, perplexity, relative, with_limits

_SPLITS = ("test_loss", "validation_loss")
_MOST_SCORES = 12  # charts of scores other than the two losses


def methods_section(found: Sequence[Outcome]) -> Section:
    """Tables of the methods: at equal updates, time and candidates, against the controls, and time to target."""
    first = found[0]
    several = len({outcome.setting for outcome in found}) > 1
    blocks: list[Block] = []
    if several:
        blocks.append(Charts((_setting_chart(found),)))
    else:
        charts = [_difference_chart(found, reference) for reference in (RANDOM, REGULAR) if _compared(found, reference)]
        if charts:
            blocks.append(Charts(tuple(charts), charts[0].keys))
    title = title_of(first.metric)
    levels = {
        "equal updates": lambda o: perplexity(o.final),
        "equal time": lambda o: perplexity(o.equal_seconds),
        "equal candidates": lambda o: perplexity(o.equal_candidates),
        "seeds": lambda o: str(o.n),
    }
    blocks.append(
        _table(
            found,
            several,
            levels,
            f"{title}: mean over seeds and 95 % bootstrap interval. Equal time reads each curve where the fastest "
            "method of its seed had ended.",
            best=("final", "equal_seconds", "equal_candidates"),
        )
    )
    against = {
        "to random_k": lambda o: relative(o.against_random) or MISSING,
        "in equal time": lambda o: relative(o.against_random_in_time) or MISSING,
        "to regular": lambda o: relative(o.against_regular) or MISSING,
        "in equal time ": lambda o: relative(o.against_regular_in_time) or MISSING,
    }
    if any(o.against_random or o.against_regular for o in found):
        blocks.append(
            _table(
                found,
                several,
                {name: cell for name, cell in against.items() if any(cell(o) != MISSING for o in found)},
                f"Difference of the {title.lower()} within seeds: less than 0 is better. 95 % t-interval, and p of the "
                "paired t-test by Holm's method.",
            )
        )
    if any(o.reached for o in found if o.method != o.target) and first.target in {o.method for o in found}:
        blocks.append(
            _table(
                found,
                several,
                {
                    "reached in": lambda o: f"{o.reached} of {o.n}",
                    "updates": lambda o: MISSING if o.steps_to_target is None else f"{o.steps_to_target.mean:,.0f}",
                    "of its updates": lambda o: _share(o.steps_share),
                    "time": lambda o: MISSING if o.seconds_to_target is None else duration(o.seconds_to_target.mean),
                    "of its time": lambda o: _share(o.seconds_share),
                },
                f"How soon each method came to the last {title.lower()} of {first.target}: means over seeds that did.",
            )
        )
    names = list(dict.fromkeys(name for outcome in found for name in outcome.scores))
    if names:
        cells = {title_of(name): _score(name) for name in names}
        blocks.append(_table(found, several, cells, "What else was measured at the end."))
    return Section("methods", "Methods", tuple(blocks))


def curves_section(members: Members, curves: Sequence[Curve], styles: Mapping[str, int], metric: str) -> Section:
    """Everything that was measured in the course of training, a line for each method."""
    blocks: list[Block] = []
    seeds = len(members.seeds)
    if seeds > 2:
        blocks.append(f"Lines are means over {seeds} seeds, bands their 95 % bootstrap intervals.")
    elif seeds == 2:
        blocks.append("Thick lines are means over two seeds, thin ones the seeds.")
    keys = tuple(Key(method, styles[method]) for method in members.methods)
    for place, setting in enumerate(members.settings):
        own = [curve for curve in curves if curve.setting == setting]
        suffix = f"-{place}" if len(members.settings) > 1 else ""
        if len(members.runs) == 1:
            first = [perplexity_chart(members.runs[0]), training_chart(members.runs[0])]
            wanted = _scores(own, _SPLITS)
        else:
            first, wanted = [], _shown(own, metric, with_all=place == 0)
        drawn = [*first, *(curve_chart(own, name, axis, styles, members.asked, suffix) for name, axis in wanted)]
        charts = [chart for chart in drawn if chart is not None]
        if setting and len(members.settings) > 1:
            blocks.append(Heading(f"With {setting}"))
        if charts:
            blocks.append(Charts(tuple(charts), keys if len(members.runs) > 1 else ()))
    return Section("curves", "Curves", tuple(blocks))


def _shown(curves: Sequence[Curve], metric: str, with_all: bool) -> list[tuple[str, str]]:
    """Metrics and axes worth a chart, the most important first."""
    measured = {name for curve in curves for name in curve.metrics}
    others = [name for name in _SPLITS if name in measured and name != metric]
    found = [(metric, "steps"), (metric, "seconds")]
    if _differ_in_candidates(curves):
        found.append((metric, "candidates"))
    found += [(name, "steps") for name in others]
    return [*found, *(_scores(curves, (metric, *others)) if with_all else ())]


def _scores(curves: Sequence[Curve], without: Sequence[str]) -> list[tuple[str, str]]:
    """Whatever else was measured, against updates."""
    # What was measured before and after only is in the table.
    several = [(name, np.isfinite(values).sum()) for curve in curves for name, values in curve.metrics.items()]
    measured = dict.fromkeys(name for name, count in several if count > 2)
    scores = [name for name in measured if name not in without and not name.endswith("perplexity")]
    return [(name, "steps") for name in scores[:_MOST_SCORES]]


def _differ_in_candidates(curves: Sequence[Curve]) -> bool:
    """Whether methods saw unequally many candidates after equally many updates."""
    drawing = [curve for curve in curves if curve.method != TARGET_ONLY and len(curve.steps) and curve.steps[-1] > 0]
    return len({round(float(curve.candidates[-1] / curve.steps[-1]), 6) for curve in drawing}) > 1


def _table(
    found: Sequence[Outcome],
    several: bool,
    columns: Mapping[str, Callable[[Outcome], str]],
    caption: str,
    best: Sequence[str] = (),
) -> Table:
    setting = ("setting",) if several else ()
    rows = []
    for outcome in found:
        named = (outcome.setting,) if several else ()
        rows.append((*named, outcome.method, *(cell(outcome) for cell in columns.values())))
    marked = frozenset(
        (row, column + 1 + len(setting))
        for column, name in enumerate(best)
        for one in dict.fromkeys(outcome.setting for outcome in found)
        if (row := _lowest(found, one, name)) is not None
    )
    head = (*setting, "method", *(name.strip() for name in columns))
    return Table(head, tuple(rows), left=1 + len(setting), caption=caption, best=marked)


def _lowest(found: Sequence[Outcome], setting: str, name: str) -> int | None:
    values = {
        row: getattr(outcome, name).mean
        for row, outcome in enumerate(found)
        if outcome.setting == setting and math.isfinite(getattr(outcome, name).mean)
    }
    return min(values, key=lambda row: values[row]) if len(values) > 1 else None


def _share(value: Interval | None) -> str:
    return MISSING if value is None else percent(value.mean, 0)


def _score(name: str) -> Callable[[Outcome], str]:
    def cell(outcome: Outcome) -> str:
        value = outcome.scores.get(name)
        if value is None:
            return MISSING
        return perplexity(value) if is_loss(name) else with_limits(value)

    return cell


def _compared(found: Sequence[Outcome], reference: str) -> list[tuple[str, Difference, Difference | None]]:
    """Methods and their differences to a reference at equal updates and in equal time."""
    if reference == RANDOM:
        every = [(o.method, o.against_random, o.against_random_in_time) for o in found]
    else:
        every = [(o.method, o.against_regular, o.against_regular_in_time) for o in found]
    return [(method, at_end, in_time) for method, at_end, in_time in every if at_end is not None and at_end.n]


def _difference_chart(found: Sequence[Outcome], reference: str) -> Chart:
    """Difference of every method to a reference with its interval."""
    rows = _compared(found, reference)

    def draw(axes: Any) -> None:
        axes.axvline(0, color=INK, linewidth=0.9)
        for row, (_, at_end, in_time) in enumerate(rows):
            _interval(axes, row - 0.14, at_end, 1)
            _interval(axes, row + 0.16, in_time, 2)
        axes.set_yticks(range(len(rows)), [method for method, _, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("difference in perplexity (left is better)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:+g} %")
        axes.locator_params(axis="x", nbins=6)

    table = Table(
        ("method", "equal updates", "equal time"),
        tuple((method, relative(one), relative(other)) for method, one, other in rows),
        caption=f"Difference of the perplexity to that of {reference}, within seeds.",
    )
    says = f"The difference of each method's perplexity to that of {reference}, with its 95 % interval."
    keys = (Key("equal updates", 1), Key("equal time", 2))
    height = max(0.45, 0.2 + 0.075 * len(rows))
    return Chart(f"against-{reference}", f"Against {reference}", says, draw, table, keys, height)


def _interval(axes: Any, row: float, difference: Difference | None, look: int) -> None:
    if difference is None or not math.isfinite(difference.mean):
        return
    low, mean, high = (100 * (exponential(x) - 1) for x in (difference.low, difference.mean, difference.high))
    style = line_style(look)
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [row, row], color=style["color"], linewidth=1.8, linestyle=style["linestyle"])
    axes.plot([mean], [row], **(style | {"linestyle": "none", "markersize": 6}))


def _setting_chart(found: Sequence[Outcome]) -> Chart:
    """The final loss of every method in each setting."""
    settings = list(dict.fromkeys(outcome.setting for outcome in found))
    methods = list(dict.fromkeys(outcome.method for outcome in found))
    styles = styles_of_methods(methods)
    by = {(outcome.setting, outcome.method): outcome.final for outcome in found}
    metric = found[0].metric

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
        axes.set_xticks(range(len(settings)), [re.sub(r"^.*=", "", setting) for setting in settings])
        axes.set_xlabel(re.sub(r"=[^=]*$", "", settings[0]))
        axes.grid(axis="x", visible=False)
        logarithmic(axes)

    table = Table(
        ("setting", *methods),
        tuple((s, *(perplexity(by[s, m]) if (s, m) in by else MISSING for m in methods)) for s in settings),
        caption=f"{title_of(metric)} at the end, mean and 95 % interval.",
    )
    says = f"{title_of(metric)} at the end, for every setting and method."
    keys = tuple(Key(method, styles[method]) for method in methods)
    return Chart("settings", f"{title_of(metric)} at the end", says, draw, table, keys)
