"""A run, read back from its folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greats_jax.errors import RunError
from greats_jax.models.sources import one_line
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import load_config
from greats_jax.training.jsonl import read_json_lines
from greats_jax.training.run_folder import (
    ADAPTER,
    CONFIG,
    CURVES,
    METRICS,
    MODEL,
    SELECTIONS,
    SUMMARY,
    how_to_go_on,
)
from greats_jax.training.summary import summarize


@dataclass(frozen=True)
class RunResult:
    """What a run folder holds.

    Attributes:
        folder: The run folder.
        config: The resolved configuration.
        status: finished, or interrupted where the run was stopped early and can be gone on with.
        metrics: Records of metrics.jsonl: one per update and per evaluation.
        selections: Records of selections.jsonl: one per batch of candidates.
        summary: Numbers of the closing table (see `summary.summarize`).
        weights: Folder of the final weights, a PEFT adapter or a Hugging Face model; an interrupted run has none yet.
        plots: The curves, if they were drawn.
    """

    folder: Path
    config: TrainConfig
    status: str
    metrics: tuple[dict[str, Any], ...]
    selections: tuple[dict[str, Any], ...]
    summary: dict[str, Any]
    weights: Path
    plots: tuple[Path, ...]

    @classmethod
    def load(cls, folder: str | Path) -> "RunResult":
        """Read a run folder.

        Raises:
            RunError: There is no run in the folder, or it never ended.
        """
        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            instead = (
                f"one of those in {folder / 'runs'}"
                if (folder / "runs").is_dir()
                else "the folder that greats train wrote"
            )
            raise RunError(f"{folder}: there is no run here (no {CONFIG}); give {instead}")
        if not (folder / SUMMARY).is_file():
            raise RunError(
                f"{folder}: this run has not ended, so it has no final weights; go on with it: {how_to_go_on(folder)}"
            )
        try:
            summary = json.loads((folder / SUMMARY).read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{folder / SUMMARY}: {one_line(error)}; the run folder is damaged") from None
        if not isinstance(summary, dict) or not isinstance(summary.get("status"), str):
            raise RunError(f"{folder / SUMMARY}: not the summary of a run; the run folder is damaged")
        return cls._read(folder, summary)

    @classmethod
    def interrupted(cls, folder: Path) -> "RunResult":
        """What the folder of a run that was stopped early holds; its summary is that of the updates made so far."""
        metrics, selections = read_json_lines(folder / METRICS), read_json_lines(folder / SELECTIONS)
        return cls._read(folder, {"status": "interrupted", **summarize(metrics, selections)})

    @classmethod
    def _read(cls, folder: Path, summary: dict[str, Any]) -> "RunResult":
        config = load_config(folder / CONFIG)
        return cls(
            folder=folder,
            config=config,
            status=summary["status"],
            metrics=tuple(read_json_lines(folder / METRICS)),
            selections=tuple(read_json_lines(folder / SELECTIONS)),
            summary=summary,
            weights=folder / (MODEL if config.lora is None else ADAPTER),
            plots=tuple(sorted((folder / CURVES).glob("*.png"))),
        )
