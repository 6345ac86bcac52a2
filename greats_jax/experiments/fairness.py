"""Whether runs that are to be compared began alike and saw the same, from what they recorded."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from greats_jax.errors import RunError
from greats_jax.experiments.outcomes import TARGET_ONLY
from greats_jax.training.result import RunResult

_OF_THE_CLOCK = ("seconds",)


class Beginning(NamedTuple):
    """What must be the same in all runs of one setting and seed.

    Attributes:
        name: The run, for messages.
        origin: Short hashes of the trainable weights before the first update and of all examples.
        first: The first evaluation, before the first update.
        candidates: Ids of each batch of candidates; None where the method draws none.
    """

    name: str
    origin: dict[str, Any]
    first: dict[str, Any]
    candidates: tuple[tuple[str, ...], ...] | None


def beginning_of(run: RunResult) -> Beginning:
    """What is compared of a run."""
    first = next((record for record in run.metrics if record["event"] == "evaluation"), {})
    drawn = tuple(tuple(record["candidates"]) for record in run.selections)
    origin = run.summary.get("origin", {})
    return Beginning(
        name=run.folder.name,
        origin={name: origin.get(name) for name in ("initial", "examples")},
        first={name: value for name, value in first.items() if name not in _OF_THE_CLOCK},
        candidates=None if run.config.method == TARGET_ONLY else drawn,
    )


def check_alike(one: Beginning, others: Sequence[Beginning]) -> None:
    """Make sure that a run began like others of its setting and seed.

    Candidates are compared as far as both runs went, and where both draw equally many at once.

    Raises:
        RunError: It did not; the message names the two runs and what differs.
    """
    for other in others:
        for name, what in (("initial", "weights"), ("examples", "examples")):
            if one.origin[name] != other.origin[name]:
                raise _unlike(one, other, f"the {what} they began with differ")
        for name, value in one.first.items():
            if value != other.first.get(name):
                raise _unlike(
                    one,
                    other,
                    f"{name} before the first update is {value} in one and {other.first.get(name)} in the other",
                )
        if difference := _first_unlike_batch(one, other):
            raise _unlike(one, other, difference)


def _first_unlike_batch(one: Beginning, other: Beginning) -> str | None:
    """Words for the first batches that differ."""
    if one.candidates is None or other.candidates is None:
        return None
    for number, (mine, others) in enumerate(zip(one.candidates, other.candidates, strict=False), start=1):
        if len(mine) != len(others):
            return None
        for own, its in zip_longest(mine, others):
            if own != its:
                return f"batch {number} of one has the candidate {own} where that of the other has {its}"
    return None


def _unlike(one: Beginning, other: Beginning, what: str) -> RunError:
    return RunError(
        f"{one.name} and {other.name} are not comparable: {what}; if data or model were changed since, begin the "
        "comparison again in another folder with output=..."
    )
