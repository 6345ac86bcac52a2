"""The folder that holds a run: claimed before any work is done, never written over.

config.yaml        the resolved configuration
metrics.jsonl      one record per update ("event": "step") and per evaluation ("event": "evaluation")
selections.jsonl   one record per batch of candidates: ids, sources, scores, losses, chosen, weights
summary.json       how the run ended: perplexities, share of each source, throughput
curves/*.png       the same as pictures (extra `plots`)
adapter/ or model/ the final weights
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from greats_jax.errors import RunError
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import to_yaml
from greats_jax.training.events import Evaluated, Event, Selected, Started, Stepped
from greats_jax.training.jsonl import JsonLines, dumps

CONFIG, METRICS, SELECTIONS, SUMMARY = "config.yaml", "metrics.jsonl", "selections.jsonl", "summary.json"
CURVES, ADAPTER, MODEL = "curves", "adapter", "model"


def claim(folder: Path, option: str = "output=...") -> None:
    """Create the folder for results, or say why it cannot be used.

    Args:
        folder: The folder.
        option: How the user names another one.

    Raises:
        RunError: It exists and is not empty, or it cannot be created or written to.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise RunError(f"{folder}: this folder is not empty; choose another with {option} or move it away")
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{folder}: cannot create this folder ({reason}); choose another with {option}") from None


def abandon(folder: Path) -> None:
    """Remove a claimed folder that nothing was written to; one that holds something stays as it is."""
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


class RunFolderTracker:
    """Writes a run's records to its folder as they happen."""

    def __init__(self, folder: Path, config: TrainConfig):
        (folder / CONFIG).write_text(to_yaml(config), encoding="utf-8")
        self._metrics = JsonLines(folder / METRICS)
        self._selections = JsonLines(folder / SELECTIONS)

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

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._selections.close()


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json; its presence marks a run that ended in order."""
    text = json.dumps(json.loads(dumps(summary)), indent=2, ensure_ascii=False)
    (folder / SUMMARY).write_text(text + "\n", encoding="utf-8")
