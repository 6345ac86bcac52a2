"""The sections on what came out: curves, and tables of the methods."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from greats_jax.experiments.curves import Curve
from greats_jax.experiments.numbers import MISSING, duration, percent
from greats_jax.experiments.outcomes import RANDOM, REGULAR, Outcome
from greats_jax.experiments.ranking import best_of
from greats_jax.experiments.report.curve_charts import curve_chart, perplexity_chart, title_of, training_chart
from greats_jax.experiments.report.document import Block, Charts, Heading, Key, Section, Table
from greats_jax.experiments.report.members import Members
from greats_jax.experiments.report.outcome_charts import difference_chart, setting_chart
from greats_jax.experiments.statistics import Interval
from greats_jax.experiments.wording import is_loss, perplexity, relative, with_limits

_DIVERGED = " Seeds that diverged ended without a finite loss; means and differences leave them out."
_UNEVEN = " Methods have different seeds: the best is marked over those that all of a setting share."
_SPLITS = ("test_loss", "validation_loss")
_MOST_SCORES = 12  # charts of scores other than the two losses, of all settings together
_FEWEST_SCORES = 2  # but of each setting so many
_MOST_SETTINGS = 6  # of which the differences are drawn


def methods_section(found: Sequence[Outcome]) -> Section:
    """Tables of the methods: at equal updates, time and candidates, against the controls, and time to target."""
    first = found[0]
    several = len({outcome.setting for outcome in found}) > 1
    blocks: list[Block] = []
    if several:
        blocks.append(Charts((setting_chart(found),)))
    blocks += _difference_charts(found)
    if several and isinstance(blocks[-1], Charts):
        blocks.append(Heading("With every setting"))  # the tables
    title = title_of(first.metric)
    levels = {
        "equal updates": lambda o: perplexity(o.final),
        "equal time": lambda o: perplexity(o.equal_seconds),
        "equal candidates": lambda o: perplexity(o.equal_candidates),
        "seeds": lambda o: f"{o.n} ({o.diverged} diverged)" if o.diverged else str(o.n),
    }
    blocks.append(
        _table(
            found,
            several,
            levels,
            f"{title}: mean over seeds and 95 % bootstrap interval. Equal time reads each curve where the fastest "
            "of the methods that draw from the pool had ended with its seed."
            + _DIVERGED * any(o.diverged for o in found)
            + _UNEVEN * _uneven(found),
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
                "paired t-test by Holm's method, over the methods of each column by itself.",
            )
        )
    if any(o.reached for o in found if o.method != o.target) and first.target in {o.method for o in found}:
        blocks.append(
            _table(
                found,
                several,
                {
                    "reached in": lambda o: f"{o.reached} of {o.aimed}" if o.aimed else MISSING,
                    "updates": lambda o: MISSING if o.steps_to_target is None else f"{o.steps_to_target.mean:,.0f}",
                    "of its updates": lambda o: _share(o.steps_share),
                    "time": lambda o: MISSING if o.seconds_to_target is None else duration(o.seconds_to_target.mean),
                    "of its time": lambda o: _share(o.seconds_share),
                },
                f"How soon each method came to the last {title.lower()} of {first.target}: means over seeds that did, "
                f"of those in which {first.target} ended lower than it began.",
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
    several = len(members.settings) > 1
    for place, setting in enumerate(members.settings):
        own = [curve for curve in curves if curve.setting == setting]
        if len(members.runs) == 1:
            first, levels = [perplexity_chart(members.runs[0]), training_chart(members.runs[0])], []
            scores = _scores(own, _SPLITS)
        else:
            first, levels = [], _levels(own, metric)
            scores = _scores(own, [name for name, _ in levels])
        shown = scores[: max(_FEWEST_SCORES, _MOST_SCORES // len(members.settings))]
        of = (f"-{place}", setting) if several else ("", "")
        drawn = [
            *first,
            *(curve_chart(own, name, axis, styles, members.asked, *of) for name, axis in levels),
            *(curve_chart(own, name, "steps", styles, members.asked, *of) for name in shown),
        ]
        charts = [chart for chart in drawn if chart is not None]
        if several and setting:
            blocks.append(Heading(f"With {setting}"))
        if charts:
            blocks.append(Charts(tuple(charts), keys if len(members.runs) > 1 else ()))
        if left_out := len(scores) - len(shown):
            blocks.append(f"Of {len(scores)} scores, {left_out} are not drawn; the results files have them all.")
    return Section("curves", "Curves", tuple(blocks))


def _levels(curves: Sequence[Curve], metric: str) -> list[tuple[str, str]]:
    """Losses and the axes to draw them against, the most important first."""
    measured = {name for curve in curves for name in curve.metrics}
    others = [name for name in _SPLITS if name in measured and name != metric]
    found = [(metric, "steps"), (metric, "seconds")]
    if _differ_in_candidates(curves):
        found.append((metric, "candidates"))
    return [*found, *((name, "steps") for name in others)]


def _scores(curves: Sequence[Curve], without: Sequence[str]) -> list[str]:
    """Whatever else was measured, against updates."""
    # What was measured before and after only is in the table.
    several = [(name, np.isfinite(values).sum()) for curve in curves for name, values in curve.metrics.items()]
    measured = dict.fromkeys(name for name, count in several if count > 2)
    return [name for name in measured if name not in without and not name.endswith("perplexity")]


def _differ_in_candidates(curves: Sequence[Curve]) -> bool:
    """Whether methods saw unequally many candidates after equally many updates."""
    drawing = [curve for curve in curves if curve.draws and len(curve.steps) and curve.steps[-1] > 0]
    return len({round(float(curve.candidates[-1] / curve.steps[-1]), 6) for curve in drawing}) > 1


def _difference_charts(found: Sequence[Outcome]) -> list[Block]:
    """Pictures of the differences to the controls, setting by setting where these are few."""
    settings = list(dict.fromkeys(outcome.setting for outcome in found))
    if len(settings) > _MOST_SETTINGS:
        return [f"Of {len(settings)} settings, the differences to random_k and regular are in the table only."]
    blocks: list[Block] = []
    for place, setting in enumerate(settings):
        own = [outcome for outcome in found if outcome.setting == setting]
        several = (setting, f"-{place}") if len(settings) > 1 else ("", "")
        charts = [chart for name in (RANDOM, REGULAR) if (chart := difference_chart(own, name, *several)) is not None]
        if charts and len(settings) > 1:
            blocks.append(Heading(f"With {setting}"))
        if charts:
            blocks.append(Charts(tuple(charts), charts[0].keys))
    return blocks


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
        (row, column + 1 + len(setting)) for column, loss in enumerate(best) for row in _best(found, loss)
    )
    head = (*setting, "method", *(name.strip() for name in columns))
    return Table(head, tuple(rows), left=1 + len(setting), caption=caption, best=marked)


def _uneven(found: Sequence[Outcome]) -> bool:
    """Whether methods of a setting that could be the best have not the same seeds."""
    seeds = {(outcome.setting, frozenset(outcome.by_seed.final)) for outcome in found if not outcome.diverged}
    return len(seeds) > len({setting for setting, _ in seeds})


def _best(found: Sequence[Outcome], loss: str) -> list[int]:
    """The row of the best method of each setting that has several."""
    rows = []
    for setting in dict.fromkeys(outcome.setting for outcome in found):
        own = {row: outcome for row, outcome in enumerate(found) if outcome.setting == setting}
        if len(own) > 1 and (first := best_of(list(own.values()), loss)) is not None:
            rows += [row for row, outcome in own.items() if outcome is first.outcome]
    return rows


def _share(value: Interval | None) -> str:
    return MISSING if value is None else percent(value.mean, 0)


def _score(name: str) -> Callable[[Outcome], str]:
    def cell(outcome: Outcome) -> str:
        value = outcome.scores.get(name)
        if value is None:
            return MISSING
        return perplexity(value) if is_loss(name) else with_limits(value)

    return cell
