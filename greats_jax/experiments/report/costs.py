"""Where the time of a run went, and how much memory it took."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from greats_jax.experiments.report.members import Member
from greats_jax.training.summary import time_split

PARTS = ("data", "scoring", "selection", "update", "evaluation", "compiling")
"""What the time of a run is split into, as `training.summary.time_split` names it."""


def seconds_by_part(member: Member) -> dict[str, float]:
    """Seconds of a run by kind of work, from its records."""
    parts = time_split(member.run.metrics)
    return {part: float(parts[part]) for part in PARTS}


def mean_seconds(members: Sequence[Member]) -> dict[str, float]:
    """The mean of `seconds_by_part` over runs."""
    each = [seconds_by_part(member) for member in members]
    return {part: sum(one[part] for one in each) / len(each) for part in PARTS}


class Memory(NamedTuple):
    """Memory of one run.

    Attributes:
        peak: Most bytes held at once.
        measured: device, or process where the device does not count: then with the interpreter and its libraries.
    """

    peak: float
    measured: str


def memory(member: Member) -> Memory | None:
    """None where the run did not record it."""
    found = member.run.summary.get("memory")
    if not isinstance(found, Mapping) or not isinstance(found.get("peak_bytes"), (int, float)):
        return None
    return Memory(float(found["peak_bytes"]), str(found.get("measured", "process")))


def largest_memory(members: Sequence[Member]) -> Memory | None:
    """The largest of several runs; None where none recorded it."""
    found = [one for member in members if (one := memory(member)) is not None]
    return max(found, default=None)
