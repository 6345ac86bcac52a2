"""Runs as their folders hold them, with all that is read of their records."""

from pathlib import Path
from typing import Any

from greats_jax.errors import GreatsError, RunError
from greats_jax.training.result import RunResult
from greats_jax.training.run_folder import CONFIG, SUMMARY


def read_run(folder: Path) -> RunResult:
    """A run that has ended, or what an unfinished one has written so far."""
    ended = (folder / SUMMARY).is_file() or not (folder / CONFIG).is_file()
    try:
        run = RunResult.load(folder) if ended else RunResult.interrupted(folder)
        sound = all(map(_is_choice, run.selections)) and all(map(_is_measurement, run.metrics))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, GreatsError):
            raise
        sound = False
    if not sound:
        raise RunError(f"{folder}: a record lacks what every run writes; the run folder is damaged")
    return run


def _is_choice(record: dict[str, Any]) -> bool:
    """Whether a record of selections.jsonl has what is read of it."""
    named, weighted = ("candidates", "sources", "chosen"), ("weights", "scores", "losses")
    lists = [record.get(name) for name in (*named, *weighted)]
    if not all(isinstance(value, list) for value in lists):
        return False
    texts = all(isinstance(item, str) for name in named for item in record[name])
    numbers = all(item is None or isinstance(item, (int, float)) for name in weighted for item in record[name])
    sizes = {len(record[name]) for name in ("candidates", "sources", "scores", "losses")}
    places = isinstance(record.get("step"), int) and isinstance(record.get("micro_batch"), int)
    return texts and numbers and places and len(sizes) == 1 and len(record["chosen"]) == len(record["weights"])


def _is_measurement(record: dict[str, Any]) -> bool:
    """Whether a record of metrics.jsonl has what is read of it."""
    numbers, perhaps = {
        "step": (("step", "seconds", "compiled", "candidate_tokens", "trained_tokens"), ("loss", "seconds_selecting")),
        "evaluation": (("step", "seconds"), ()),
    }[record["event"]]
    known = all(isinstance(record[name], (int, float)) for name in numbers)
    return known and all(record[name] is None or isinstance(record[name], (int, float)) for name in perhaps)
