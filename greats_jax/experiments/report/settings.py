"""The sections on how the runs were made: what differs between them, everything else, and what they ran on."""

from collections.abc import Mapping, Sequence

from greats_jax.experiments.numbers import MISSING, number
from greats_jax.experiments.report.document import Block, Folded, Section, Table
from greats_jax.experiments.report.members import Member, Members, flat
from greats_jax.training.config_loading import plain, to_yaml

_MOST_RUNS = 8  # of more, the table is shown when asked for
_MOST_VALUES = 3  # of a key that is different in every run of a group


def differences(members: Members) -> Table | None:
    """Keys of the configuration in which runs differ, one column for each group of runs; None where none do."""
    groups = _groups(members)
    flats = {name: [flat(plain(member.run.config)) for member in runs] for name, runs in groups.items()}
    every = [one for several in flats.values() for one in several]
    keys = [
        key
        for key in dict.fromkeys(key for one in every for key in one)
        if key not in ("output", "seed") and len({one.get(key) for one in every}) > 1
    ]
    if not keys:
        return None
    rows = tuple((key, *(_values([one.get(key) for one in several]) for several in flats.values())) for key in keys)
    return Table(
        ("key", *groups), rows, left=1 + len(groups), caption="Keys of the configuration in which runs differ."
    )


def settings_section(members: Members) -> Section:
    """Differences first, then a table of the runs, then every configuration in full."""
    blocks: list[Block] = []
    if (table := differences(members)) is not None:
        blocks.append(table)
    elif len(members.runs) > 1:
        blocks.append("The runs differ in nothing but their seed.")
    table = _runs(members)
    blocks.append(table if len(table.rows) <= _MOST_RUNS else Folded(f"All {len(table.rows)} runs", table))
    for name, runs in _groups(members).items():
        text = to_yaml(runs[0].run.config)
        blocks.append(Folded(f"Configuration: {name}, seed {runs[0].seed}", text.rstrip()))
    return Section("settings", "Settings", tuple(blocks))


def versions_section(members: Members) -> Section:
    """Packages and machines."""
    found: dict[str, list[str]] = {}
    for member in members.runs:
        for name, value in _surroundings(member).items():
            if value not in found.setdefault(name, []):
                found[name].append(value)
    if not found:
        return Section("versions", "Versions", ("These runs did not record what they ran on.",))
    rows = tuple((name, ", ".join(values)) for name, values in found.items())
    mixed = [name for name, values in found.items() if len(values) > 1]
    blocks: list[Block] = []
    if mixed:
        blocks.append(f"The runs were not made with the same {', '.join(mixed)}; their times are not comparable.")
    return Section("versions", "Versions", (*blocks, Table(("", ""), rows, left=2)))


def _surroundings(member: Member) -> dict[str, str]:
    found: dict[str, str] = {}
    versions, device = member.run.summary.get("versions"), member.run.summary.get("device")
    if isinstance(device, Mapping):
        found["device"] = f"{device.get('count', '?')} × {device.get('kind', '?')}"
        if device.get("processes", 1) != 1:
            found["processes"] = str(device["processes"])
    if isinstance(versions, Mapping):
        found |= {str(name): str(value) for name, value in versions.items() if value is not None}
    return found


def _groups(members: Members) -> dict[str, list[Member]]:
    """Runs by method and setting."""
    found: dict[str, list[Member]] = {}
    for member in members.runs:
        found.setdefault(f"{member.method} ({member.setting})" if member.setting else member.method, []).append(member)
    return found


def _runs(members: Members) -> Table:
    rows = []
    for member in members.runs:
        first, last = member.evaluations[0], member.evaluations[-1]
        named = (member.setting,) if any(members.settings) else ()
        before, after = (number(_perplexity(record)) for record in (first, last))
        rows.append(
            (member.run.folder.name, *named, member.method, str(member.seed), f"{len(member.steps):,}", before, after)
        )
    setting = ("setting",) if any(members.settings) else ()
    head = ("run", *setting, "method", "seed", "updates", "perplexity before", "after")
    return Table(
        head, tuple(rows), left=2 + len(setting), caption="All runs, with the perplexity of the test examples."
    )


def _perplexity(record: Mapping[str, float | None]) -> float | None:
    value = record.get("test_perplexity")
    return record.get("validation_perplexity") if value is None else value


def _values(values: Sequence[str | None]) -> str:
    distinct = list(dict.fromkeys(MISSING if value is None else value for value in values))
    more = f" and {len(distinct) - _MOST_VALUES} more" if len(distinct) > _MOST_VALUES else ""
    return ", ".join(distinct[:_MOST_VALUES]) + more
