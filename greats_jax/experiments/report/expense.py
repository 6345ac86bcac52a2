"""The section on where time and memory went."""

from collections.abc import Mapping, Sequence
from typing import Any

from greats_jax.experiments.numbers import MISSING, duration, percent, size
from greats_jax.experiments.report.costs import PARTS, Memory, largest_memory, mean_seconds
from greats_jax.experiments.report.document import Block, Chart, Charts, Key, Section, Table
from greats_jax.experiments.report.members import Member, Members
from greats_jax.experiments.report.outcome_charts import names_of_settings
from greats_jax.experiments.report.pictures import bar_style

_STYLES = {"data": 0, "scoring": 1, "selection": 4, "update": 3, "evaluation": 2, "compiling": 6}

_LONGEST = 18  # characters of a method or setting beside a bar

_WORDS = {
    "data": "waiting for data",
    "scoring": "scoring",
    "selection": "selection",
    "update": "update",
    "evaluation": "evaluation",
    "compiling": "compiling",
}


def expense_section(members: Members) -> Section:
    """Time by kind of work and peak memory, by method (and setting, where there are several)."""
    several = len(members.settings) > 1
    values = names_of_settings(members.settings)[1]
    groups, labels = {}, []
    for setting in members.settings:
        for method in members.methods:
            if runs := members.of(setting, method):
                groups[_name(setting if several else "", method)] = runs
                labels.append(_name(_cut(values[setting]) if several else "", _cut(method)))
    seconds = {name: mean_seconds(runs) for name, runs in groups.items()}
    memories = {name: largest_memory(runs) for name, runs in groups.items()}
    blocks: list[Block] = [
        "A compiled step can only be timed as a whole: scoring is its share of the step's operations, selection (the "
        "rule itself) is timed alone, and the update is the rest. Compiling is what first steps took beyond the others."
    ]
    keys = tuple(Key(_WORDS[part], _STYLES[part], bar=True) for part in PARTS)
    blocks.append(Charts(tuple(_time_chart(seconds, labels, what) for what in ("training", "whole")), keys))
    blocks.append(_table(groups, seconds, memories))
    if not any(memories.values()):
        blocks.append("These runs did not record their memory.")
    elif {found.measured for found in memories.values() if found} == {"process"}:
        blocks.append(
            "Memory is that of the whole process, with the interpreter and its libraries, since the device does not "
            "count its own."
        )
    return Section("costs", "Time and memory", tuple(blocks))


def _name(setting: str, method: str) -> str:
    return f"{method} ({setting})" if setting else method


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _time_chart(seconds: Mapping[str, Mapping[str, float]], labels: Sequence[str], what: str) -> Chart:
    parts = PARTS[:4] if what == "training" else PARTS
    names = list(seconds)

    def draw(axes: Any) -> None:
        for row, name in enumerate(names):
            left = 0.0
            for part in parts:
                width = seconds[name][part]
                axes.barh(row, width, 0.68, left=left, **bar_style(_STYLES[part]))
                left += width
        axes.set_yticks(range(len(names)), labels)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds of a run")

    title = "Time in updates" if what == "training" else "Time in all"
    rows = tuple(
        (name, *(_share(spent[part], sum(spent[p] for p in parts)) for part in parts))
        for name, spent in seconds.items()
    )
    table = Table(("method", *(_WORDS[part] for part in parts)), rows, caption="Seconds of a run, and their share.")
    says = f"Seconds of a run of each method, split into {', '.join(_WORDS[part] for part in parts)}."
    keys = tuple(Key(_WORDS[part], _STYLES[part], bar=True) for part in parts)
    return Chart(f"time-{what}", title, says, draw, table, keys, max(0.4, 0.16 + 0.07 * len(names)))


def _share(seconds: float, whole: float) -> str:
    return f"{duration(seconds)} ({percent(seconds / whole if whole else None, 0)})"


def _table(
    groups: Mapping[str, Sequence[Member]],
    seconds: Mapping[str, Mapping[str, float]],
    memories: Mapping[str, Memory | None],
) -> Table:
    rows = []
    for name, runs in groups.items():
        spent = seconds[name]
        updates = sum(len(run.steps) for run in runs) / len(runs)
        training = sum(spent[part] for part in PARTS[:4])
        choosing = spent["scoring"] + spent["selection"]
        found = memories[name]
        rows.append(
            (
                name,
                duration(training / updates if updates else None),
                percent(choosing / training if training else None, 0),
                duration(training),
                duration(sum(spent.values())),
                MISSING if found is None else size(found.peak),
            )
        )
    head = ("method", "an update", "of it choosing", "all updates", "whole run", "peak memory")
    return Table(head, tuple(rows), caption="Mean of the runs; of memory the largest.")
