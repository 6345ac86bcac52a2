"""The examples a run learned from, as the records they came from."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from greats_jax.data import Pool
from greats_jax.errors import RunError


def chosen_records(selections: Sequence[Mapping[str, Any]], pool: Pool) -> list[dict[str, Any]]:
    """Original records of all examples that were chosen at least once, most often chosen first.

    Args:
        selections: Records of selections.jsonl.
        pool: The pool of the run.

    Returns:
        Each record as it was read, so that it can be trained on again, with one more field `greats`: its id and source,
        how often it was a candidate and how often chosen, and the updates it was chosen in.

    Raises:
        RunError: An example is not in the pool: the data have changed since the run.
    """
    steps: dict[str, list[int]] = defaultdict(list)
    considered: dict[str, int] = defaultdict(int)
    for selection in selections:
        for name in selection["candidates"]:
            considered[name] += 1
        for name, weight in zip(selection["chosen"], selection["weights"], strict=True):
            if weight > 0:
                steps[name].append(selection["step"])
    index_of = {pool[index].id: index for index in range(len(pool))}
    if missing := next((name for name in steps if name not in index_of), None):
        raise RunError(
            f"example {missing} was chosen in the run but is not in its pool now; the data have changed since"
        )
    records = []
    for name in sorted(steps, key=lambda name: (-len(steps[name]), index_of[name])):
        index = index_of[name]
        facts = {
            "id": name,
            "source": pool[index].source,
            "considered": considered[name],
            "chosen": len(steps[name]),
            "steps": steps[name],
        }
        records.append({**pool.records(index), "greats": facts})
    return records
