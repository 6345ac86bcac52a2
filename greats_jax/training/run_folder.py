"""The folder that holds a run: claimed before any work is done, never written over, gone on with where it was left.

config.yaml        the resolved configuration
metrics.jsonl      one record per update ("event": "step") and per evaluation ("event": "evaluation")
selections.jsonl   one record per batch of candidates: ids, sources, scores, losses, chosen, weights
checkpoints/       states to go on from, by number of updates (see checkpoints.py)
summary.json       how the run ended: perplexities, share of each source, throughput; it marks a finished run
curves/*.png       the same as pictures (extra `plots`)
adapter/ or model/ the final weights
"""

import json
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

from greats_jax.errors import RunError
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import to_yaml
from greats_jax.training.events import Evaluated, Event, Selected, Started, Stepped
from greats_jax.training.folder_lock import LOCK
from greats_jax.training.jsonl import JsonLines, dumps

CONFIG, METRICS, SELECTIONS, SUMMARY = "config.yaml", "metrics.jsonl", "selections.jsonl", "summary.json"
CURVES, ADAPTER, MODEL, CHECKPOINTS = "curves", "adapter", "model", "checkpoints"
_PROBE = ".writable"
_IN_PASSING = {LOCK, _PROBE, f".{CONFIG}.new"}  # what a run killed in its first moments may leave


class Standing(Enum):
    """What a folder is to a run that names it."""

    VACANT = "there is none, or nothing is in it"
    UNFINISHED = "a run was begun in it and has not ended"
    FINISHED = "a run ended in it"
    FOREIGN = "it holds something else"


def standing(folder: Path) -> Standing:
    """What a folder holds."""
    if (folder / CONFIG).is_file():
        return Standing.FINISHED if (folder / SUMMARY).is_file() else Standing.UNFINISHED
    if not folder.exists() or (folder.is_dir() and {path.name for path in folder.iterdir()} <= _IN_PASSING):
        return Standing.VACANT
    return Standing.FOREIGN


def how_to_go_on(folder: Path) -> str:
    """The command that goes on with the run in a folder."""
    return shlex.join(["greats", "train", str(folder / CONFIG), f"output={folder}", "--resume"])


def claim(folder: Path, option: str = "output=...") -> None:
    """Create the folder for results, or say why it cannot be used.

    Args:
        folder: The folder.
        option: How the user names another one.

    Raises:
        RunError: It exists and is not empty, or it cannot be created or written to.
    """
    try:
        found = standing(folder)
        if found is Standing.UNFINISHED:
            raise RunError(
                f"{folder}: an unfinished run is in this folder; go on with it by adding --resume, or choose another "
                f"with {option}"
            )
        if folder.is_dir() and found is not Standing.VACANT:
            raise RunError(f"{folder}: this folder is not empty; choose another with {option} or move it away")
        _write_to(folder)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{folder}: cannot create this folder ({reason}); choose another with {option}") from None


def abandon(folder: Path) -> None:
    """Remove a claimed folder that nothing was written to; one that holds something stays as it is."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class RunFolderTracker:
    """Writes a run's records to its folder as they happen.

    Args:
        folder: The run folder.
        config: The resolved configuration.
        lengths: Bytes of each file of records that are kept, from `sync`; none for a run that begins.
    """

    def __init__(self, folder: Path, config: TrainConfig, lengths: Mapping[str, int] | None = None):
        lengths = lengths or {}
        # What a run that was stopped at its very end had already written comes again.
        for name in (CURVES, ADAPTER, MODEL):
            shutil.rmtree(folder / name, ignore_errors=True)
        write_whole(folder / CONFIG, to_yaml(config))
        self._metrics = JsonLines(folder / METRICS, lengths.get(METRICS, 0))
        self._selections = JsonLines(folder / SELECTIONS, lengths.get(SELECTIONS, 0))

    def record(self, event: Event) -> None:
        """Append the event to its file."""
        match event:
            case Stepped(step, metrics):
                self._metrics.write({"event": "step", "step": step, **metrics})
            case Evaluated(step, metrics):
                self._metrics.write({"event": "evaluation", "step": step, **metrics})
            case Selected():
                self._selections.write(asdict(event))
            case Started():
                pass

    def sync(self) -> dict[str, int]:
        """Make sure that all records are on the disk; bytes of each file."""
        return {METRICS: self._metrics.sync(), SELECTIONS: self._selections.sync()}

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._selections.close()


class NoRecords:
    """In the place of a `RunFolderTracker` where another process writes the files."""

    def record(self, event: Event) -> None:
        """Drop the event."""

    def sync(self) -> dict[str, int]:
        """Nothing is written here: the process that does knows the lengths."""
        return {}

    def close(self) -> None:
        """Nothing to close."""


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json; its presence marks a run that ended in order."""
    text = json.dumps(json.loads(dumps(summary)), indent=2, ensure_ascii=False)
    write_whole(folder / SUMMARY, text + "\n")


def make_room(file: Path, option: str) -> None:
    """See that a file can be written before the work whose result it will hold; its folder is created.

    Args:
        file: The file.
        option: How the user names another one.

    Raises:
        RunError: It is a folder, or its folder cannot be created or written to.
    """
    if file.is_dir():
        raise RunError(f"{file}: this is a folder; name a file in it with {option}")
    try:
        _write_to(file.parent)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{file.parent}: cannot write to this folder ({reason}); choose another with {option}") from None


def _write_to(folder: Path) -> None:
    """Create a folder where there is none, and leave nothing of what was written to try it."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / _PROBE
    probe.touch()
    probe.unlink()


def write_whole(path: Path, text: str) -> None:
    """Write a file in one go: a run killed meanwhile leaves the old one or the new one.

    Raises:
        RunError: It cannot be written.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
