"""The section on what was selected: by source, length and loss, in the course of training, by which method."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from greats_jax.experiments.numbers import listed, number, percent, times
from greats_jax.experiments.report.document import Block, Chart, Charts, Key, Section, Table
from greats_jax.experiments.report.examples import Texts
from greats_jax.experiments.report.members import Members
from greats_jax.experiments.report.overlap import Overlap, overlaps
from greats_jax.experiments.report.picks import (
    Candidacies,
    Course,
    Shares,
    by_length,
    by_loss,
    by_source,
    chooses,
    course,
    length_edges,
    mean_course,
    mean_shares,
    rank_bins,
)
from greats_jax.experiments.report.pictures import line_style
from greats_jax.experiments.report.styles import INK, MUTED, style, styles_in_order

_MOST_SOURCES = 8  # lines that can be told apart in a picture
_MOST_BARS = 12  # of more sources, the others are shown as one
_COURSES = 3  # methods whose choice is followed through training

Picks = Mapping[str, Sequence[Candidacies]]
"""Candidates and choices of every run that draws from the pool, by method."""


def choosing(picks: Picks) -> dict[str, Sequence[Candidacies]]:
    """The methods that leave candidates out."""
    return {method: runs for method, runs in picks.items() if any(chooses(run) for run in runs)}


def choice_section(members: Members, picks: Picks, texts: Texts, styles: Mapping[str, int]) -> Section:
    """What the methods chose, over all seeds and settings; each run counts the same."""
    found = choosing(picks)
    if not found:
        said = "Every candidate was learned from: nothing was selected in these runs."
        return Section("selected", "What was selected", (said,))
    sources = _few({method: mean_shares([by_source(run) for run in runs]) for method, runs in found.items()})
    blocks: list[Block] = []
    if len(members.settings) > 1:
        blocks.append(f"Over all {len(members.settings)} settings together; each run counts the same.")
    blocks += [_in_words(method, sources[method]) for method in members.asked if method in sources]
    groups = [
        _source_chart(sources, styles),
        *_loss_chart(found, styles),
        *_length_chart(found, texts, styles),
    ]
    if texts.missing:
        blocks.append(f"Lengths are not known, since the data cannot be read any more: {texts.missing}.")
    courses = _courses([method for method in members.asked if method in found], found)
    pairs = _pairs(members, found)
    if pairs:
        keys = tuple(Key(method, styles[method]) for method in found)
        blocks += [Charts(tuple(groups), keys), _overlap_in_words(pairs)]
        blocks.append(Charts((*courses, _overlap_chart(list(found), pairs))))
    else:  # of one method, which needs no legend
        blocks.append(Charts((*(chart._replace(keys=()) for chart in groups), *courses)))
    return Section("selected", "What was selected", tuple(blocks))


def _in_words(method: str, shares: Shares) -> str:
    seen = [i for i in range(len(shares.names)) if shares.candidates[i] > 0]
    if len(seen) < 2:
        return f"`{method}` chose among the examples of one source, {shares.names[0]}."
    order = sorted(seen, key=lambda i: -shares.ratio[i])
    most, least = order[0], order[-1]
    return (
        f"`{method}` took {shares.names[most]} {shares.ratio[most]:.2f} times as often as chance would "
        f"({percent(shares.candidates[most])} of the candidates, {percent(shares.chosen[most])} of the chosen), and "
        f"{shares.names[least]} {shares.ratio[least]:.2f} times as often ({percent(shares.candidates[least])} and "
        f"{percent(shares.chosen[least])})."
    )


def _few(by_method: Mapping[str, Shares]) -> dict[str, Shares]:
    """The sources that most candidates came from, the same ones for all methods, and the rest as one."""
    total: dict[str, float] = {}
    for one in by_method.values():
        for name, share in zip(one.names, one.candidates.tolist(), strict=True):
            total[name] = total.get(name, 0.0) + share
    order = sorted(total, key=lambda name: (-total[name], name))
    kept = order if len(order) <= _MOST_BARS else order[: _MOST_BARS - 1]
    others = [f"{len(order) - len(kept)} others"] if len(kept) < len(order) else []
    places = {name: min(place, len(kept)) for place, name in enumerate(order)}
    return {method: _gathered(one, (*kept, *others), places) for method, one in by_method.items()}


def _gathered(shares: Shares, names: Sequence[str], places: Mapping[str, int]) -> Shares:
    """Shares under new names: the place of each old one among them is given, and several may have the same."""
    place = [places[name] for name in shares.names]
    candidates, chosen = (np.bincount(place, own, len(names)) for own in (shares.candidates, shares.chosen))
    return Shares(tuple(names), candidates, chosen)


def _source_chart(by_method: Mapping[str, Shares], styles: Mapping[str, int]) -> Chart:
    names = next(iter(by_method.values())).names
    chance = np.mean([shares.candidates for shares in by_method.values()], axis=0)
    rows = np.arange(len(names))[::-1]

    def draw(axes: Any) -> None:
        axes.barh(rows, chance, 0.72, color=MUTED, alpha=0.28, linewidth=0)
        offsets = np.linspace(0.24, -0.24, len(by_method)) if len(by_method) > 1 else [0.0]
        for (method, shares), offset in zip(by_method.items(), offsets, strict=True):
            look = line_style(styles[method]) | {"linestyle": "none", "markersize": 6}
            axes.plot(shares.chosen, rows + offset, **look)
        axes.set_yticks(rows, [_short(name) for name in names])
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(_percent_tick)
        axes.set_xlabel("share of the chosen (bar: of the candidates)")

    table = Table(
        ("source", "candidates", *by_method),
        tuple(
            (
                names[i],
                percent(float(chance[i])),
                *(f"{percent(float(s.chosen[i]))} ({times(float(s.ratio[i]))})" for s in by_method.values()),
            )
            for i in range(len(names))
        ),
        caption="Share of the candidates and of what each method chose, and how many times as often as by chance.",
    )
    says = f"For each source, its share of the candidates and of what {_those(by_method)} chose."
    height = max(0.55, 0.2 + 0.075 * len(names))
    keys = tuple(Key(method, styles[method]) for method in by_method)
    return Chart("by-source", "By source", says, draw, table, keys, height)


def _loss_chart(found: Picks, styles: Mapping[str, int]) -> list[Chart]:
    bins = rank_bins([run for runs in found.values() for run in runs])
    if bins < 2:
        return []
    by_method = {}
    for method, runs in found.items():
        ranked = [shares for run in runs if (shares := by_loss(run, bins)) is not None]
        if ranked:
            by_method[method] = mean_shares(ranked)
    says = f"How often {_those(by_method)} chose candidates by the rank of their loss in the batch; 1 is chance."
    label = "rank of the loss in its batch"
    return [_ratio_chart("by-loss", "By loss", says, label, by_method, styles, ends=("smallest", "largest"))]


def _length_chart(found: Picks, texts: Texts, styles: Mapping[str, int]) -> list[Chart]:
    if not texts.lengths:
        return []
    seen = {name for runs in found.values() for run in runs for name in run.names}
    lengths = [length for name, length in texts.lengths.items() if name in seen]
    if not lengths or len(edges := length_edges(lengths)) < 3:
        return []
    by_method = {}
    for method, runs in found.items():
        groups = [shares for run in runs if (shares := by_length(run, texts.lengths, edges)) is not None]
        if groups:
            by_method[method] = mean_shares(groups)
    says = f"How often {_those(by_method)} chose candidates by their length in tokens; 1 is chance."
    return [_ratio_chart("by-length", "By length", says, "tokens of an example", by_method, styles)]


def _ratio_chart(
    name: str,
    title: str,
    says: str,
    label: str,
    by_method: Mapping[str, Shares],
    styles: Mapping[str, int],
    ends: tuple[str, str] | None = None,
) -> Chart:
    names = next(iter(by_method.values())).names

    def draw(axes: Any) -> None:
        axes.axhline(1, color=INK, linewidth=0.9)
        for method, shares in by_method.items():
            axes.plot(range(len(names)), shares.ratio, **line_style(styles[method]))
        if ends:
            axes.set_xticks([0, len(names) - 1], list(ends))
        else:
            every = list(range(0, len(names), 1 if len(names) <= 5 else 2))
            axes.set_xticks(every, [names[i].replace(" to ", "–") for i in every])
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} ×")

    ratios = [shares.ratio.tolist() for shares in by_method.values()]
    rows = tuple((group, *map(times, row)) for group, *row in zip(names, *ratios, strict=True))
    table = Table((label, *by_method), rows, caption="How many times as often as by chance.")
    return Chart(name, title, says, draw, table, tuple(Key(method, styles[method]) for method in by_method))


def _courses(methods: Sequence[str], found: Picks) -> list[Chart]:
    charts = []
    sources: dict[str, int] = {}
    for number_, method in enumerate(methods[:_COURSES]):
        moved = mean_course([course(run) for run in found[method]])
        names = [name for name, _ in sorted(_totals(moved).items(), key=lambda item: -item[1])][:_MOST_SOURCES]
        if len(names) < 2 or len(moved.steps) < 2:
            continue
        sources = sources or styles_in_order(names)
        charts.append(_course_chart(f"course-{number_}", method, moved, [n for n in names if n in sources], sources))
    return charts


def _totals(moved: Course) -> dict[str, float]:
    return dict(zip(moved.names, moved.candidates.sum(axis=0).tolist(), strict=True))


def _course_chart(name: str, method: str, moved: Course, names: Sequence[str], styles: Mapping[str, int]) -> Chart:
    place = {source: i for i, source in enumerate(moved.names)}

    def draw(axes: Any) -> None:
        for source in names:
            axes.plot(moved.steps, moved.chosen[:, place[source]], **line_style(styles[source]))
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_percent_tick)
        axes.set_xlabel("update")

    rows = tuple(
        (number(float(step)), *(percent(float(moved.chosen[i, place[source]])) for source in names))
        for i, step in enumerate(moved.steps)
    )
    table = Table(("update", *names), rows, caption=f"Share of each source in what {method} chose.")
    says = f"The share of each source in what {method} chose, over the run."
    keys = tuple(Key(source, styles[source]) for source in names)
    return Chart(name, f"Share of each source over the run, {method}", says, draw, table, keys)


def _pairs(members: Members, found: Picks) -> list[Overlap]:
    order = [(setting, seed) for setting in members.settings for seed in members.seeds]
    records: dict[str, list[Sequence[Mapping[str, Any]]]] = {}
    for method in found:
        runs = {(m.setting, m.seed): m.run.selections for m in members.runs if m.method == method}
        records[method] = [runs.get(key, ()) for key in order]
    return overlaps(records)


def _overlap_in_words(pairs: Sequence[Overlap]) -> str:
    most = max(pairs, key=lambda pair: pair.jaccard - pair.chance)
    return (
        "Agreement: of what either of two methods chose from the same candidates, the share that both chose. "
        f"`{most.first}` and `{most.second}` agree most, {percent(most.jaccard, 0)} where chance would give "
        f"{percent(most.chance, 0)}."
    )


def _overlap_table(pairs: Sequence[Overlap]) -> Table:
    return Table(
        ("methods", "both chose", "by chance", "batches"),
        tuple((f"{p.first}, {p.second}", percent(p.jaccard), percent(p.chance), f"{p.batches:,}") for p in pairs),
        caption="Jaccard index of the choices, mean over batches of the same candidates.",
    )


def _overlap_chart(methods: Sequence[str], pairs: Sequence[Overlap]) -> Chart:
    value = {frozenset((pair.first, pair.second)): pair for pair in pairs}
    rows, columns = methods[1:], methods[:-1]

    def draw(axes: Any) -> None:
        from matplotlib.patches import Rectangle

        for y, one in enumerate(rows):
            for x, other in enumerate(columns):
                pair = value.get(frozenset((one, other)))
                if pair is None or x > y:
                    continue
                blue = style(1).light
                axes.add_patch(
                    Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor=blue, alpha=0.6 * pair.jaccard, linewidth=0)
                )
                axes.text(x, y - 0.13, f"{pair.jaccard:.0%}", ha="center", va="center")
                axes.text(x, y + 0.23, f"({pair.chance:.0%})", ha="center", va="center", color=MUTED)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=20, ha="right")
        axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines["bottom"].set_visible(False)

    says = "For every two methods, how much of what either chose both chose, and in brackets what chance would give."
    height = 0.25 + 0.11 * len(methods)
    return Chart("overlap", "Agreement of methods (by chance)", says, draw, _overlap_table(pairs), height=height)


def _those(methods: Mapping[str, Any]) -> str:
    return listed(list(methods))


def _short(name: str, longest: int = 18) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _percent_tick(value: float, _: int) -> str:
    return f"{100 * value:.3g} %"
