"""Whether runs that are to be compared began alike and saw the same, from what they recorded."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from greats_jax.errors import RunError
from greats_jax.experiments.wording import is_loss
from greats_jax.training.config import TrainConfig
from greats_jax.training.resolving import needed
from greats_jax.training.result import RunResult
from greats_jax.training.step import TARGET_ONLY

_ROUNDING = 1e-4  # relative: the same weights and examples, in programs compiled apart or on other devices


class Beginning(NamedTuple):
    """What must be the same in all runs of one setting and seed, and some of it in those of other seeds.

    Attributes:
        name: The run, for messages.
        origin: Short hashes of the trainable weights before the first update and of all examples.
        first: Losses of the first evaluation, before the first update.
        candidates: How many are in each batch of candidates, and a hash of their ids in order; None where the method
            draws none.
        seed: The run's seed.
        pool: Short hash of all examples that were read, before tasks took theirs; None where an older version did not
            write it down.
        base: Short hash of the pretrained weights; None where the seed draws weights, and where a rule has weights of
            its own beside them.
    """

    name: str
    origin: dict[str, Any]
    first: dict[str, Any]
    candidates: tuple[tuple[int, bytes], ...] | None
    seed: int = 0
    pool: str | None = None
    base: str | None = None


def beginning_of(run: RunResult) -> Beginning:
    """What is compared of a run."""
    first = next((record for record in run.metrics if record["event"] == "evaluation"), {})
    drawn = tuple(batch_of(record["candidates"]) for record in run.selections)
    origin = run.summary.get("origin", {})
    return Beginning(
        name=run.folder.name,
        origin={name: origin.get(name) for name in ("initial", "examples")},
        first={name: value for name, value in first.items() if is_loss(name)},
        candidates=None if run.config.method == TARGET_ONLY else drawn,
        seed=run.config.seed,
        pool=origin.get("pool"),
        base=_base(run.config, origin),
    )


def _base(config: TrainConfig, origin: dict[str, Any]) -> str | None:
    if config.model.weights == "random" or "reference_losses" in needed(config):
        return None
    return origin.get("initial" if config.lora is None else "base")


def batch_of(ids: Sequence[str]) -> tuple[int, bytes]:
    """The size of a batch of candidates, and a short hash of their ids in order."""
    digest = hashlib.blake2b(digest_size=8)
    for own in ids:
        digest.update(own.encode() + b"\0")
    return len(ids), digest.digest()


def check_alike(one: Beginning, others: Sequence[Beginning]) -> None:
    """Make sure that a run began like others of its setting.

    Runs of other seeds must have read the same pool and the same pretrained weights. Those of the same seed must have
    all in common: candidates are compared as far as both runs went, and where both draw equally many at once.

    Raises:
        RunError: It did not; the message names the two runs and what differs.
    """
    for other in others:
        for mine, its, what in ((one.pool, other.pool, "pools"), (one.base, other.base, "pretrained weights")):
            if mine is not None and its is not None and mine != its:
                raise _unlike(one, other, f"the {what} they read differ")
        if one.seed != other.seed:
            continue
        for name, what in (("initial", "weights"), ("examples", "examples")):
            if one.origin[name] != other.origin[name]:
                raise _unlike(one, other, f"the {what} they began with differ")
        for name, value in one.first.items():
            if not _same(value, other.first.get(name)):
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
    for number, (mine, its) in enumerate(zip(one.candidates, other.candidates, strict=False), start=1):
        if mine[0] != its[0]:
            return None
        if mine != its:
            return f"batch {number} of one has other candidates than that of the other, or in another order"
    return None


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same, numbers but for the order of sums."""
    if not (isinstance(one, (int, float)) and isinstance(other, (int, float))):
        return one == other
    return math.isclose(one, other, rel_tol=_ROUNDING) or (math.isnan(one) and math.isnan(other))


def _unlike(one: Beginning, other: Beginning, what: str) -> RunError:
    return RunError(
        f"{one.name} and {other.name} are not comparable: {what}; if data or model were changed since, begin the "
        "comparison again in another folder with output=..."
    )
