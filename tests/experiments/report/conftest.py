"""Folders of runs, written as a trainer would write them but without training: a report only reads."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config

from greats_jax.experiments.report import Written, write_report
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import load_config
from greats_jax.training.events import Evaluated, Selected, Stepped
from greats_jax.training.jsonl import read_json_lines
from greats_jax.training.result import RunResult
from greats_jax.training.run_folder import METRICS, SELECTIONS, RunFolderTracker, write_summary
from greats_jax.training.summary import summarize

STEPS, BATCH, KEEP = 12, 6, 3
FALL = {"greats": 0.12, "regular": 0.06, "random_k": 0.05, "max_loss": 0.01}
"""By how much each update lowers the loss."""


def _chosen(method: str, ids: Sequence[str], losses: np.ndarray, rng: np.random.Generator) -> list[int]:
    if method == "regular":
        return list(range(len(ids)))
    if method == "max_loss":
        return np.argsort(-losses)[:KEEP].tolist()
    if method == "random_k":
        return rng.permutation(len(ids))[:KEEP].tolist()
    return sorted(range(len(ids)), key=lambda i: (not ids[i].startswith("copy"), i))[:KEEP]


def write_run(config: TrainConfig, seconds: float = 0.5, names: Sequence[str] | None = None) -> RunResult:
    """A finished run whose loss falls as `FALL` says, and that prefers the source copy if its method is greats."""
    folder = Path(config.output)
    folder.mkdir(parents=True)
    tracker = RunFolderTracker(folder, config)
    draw, noise = np.random.default_rng(config.seed), np.random.default_rng((config.seed, len(config.method)))
    pool = list(names) if names else [f"{source}-{line}" for source in ("copy", "noise") for line in range(1, 41)]
    method = config.method
    for step in range(STEPS + 1):
        if step % 4 == 0:
            loss = 2.5 - FALL.get(method, 0.1) * step + 0.02 * float(noise.standard_normal())
            measured = {"validation_loss": loss - 0.1, "test_loss": loss}
            perplexities = {name.replace("loss", "perplexity"): math.exp(value) for name, value in measured.items()}
            tracker.record(Evaluated(step, {**measured, **perplexities, "test_accuracy": 0.5, "seconds": 0.25}))
        if step == STEPS:
            break
        ids = [pool[i] for i in draw.permutation(len(pool))[:BATCH]]
        losses = draw.uniform(1, 3, BATCH)
        chosen = _chosen(method, ids, losses, noise)
        known = tuple(map(float, losses)) if method not in ("regular", "random_k") else (None,) * BATCH
        sources = tuple(name.split("-")[0] for name in ids)
        picked = tuple(ids[i] for i in chosen)
        tracker.record(Selected(step + 1, 0, tuple(ids), sources, known, known, picked, (1.0,) * len(chosen)))
        first = step == 0
        tracker.record(
            Stepped(
                step + 1,
                {
                    "loss": 2.5 - 0.1 * step, "candidate_loss": 2.6 - 0.1 * step, "selection_validation_loss": 2.0,
                    "learning_rate": 0.01, "grad_norm": 1.0, "seconds": seconds + 3 * first,
                    "seconds_waiting": 0.1 * seconds, "seconds_selecting": math.nan if first else 0.4 * seconds,
                    "seconds_picking": math.nan if first else 0.1 * seconds, "tokens_per_second": 100.0,
                    "examples_per_second": 10.0, "padding_share": 0.1, "candidate_tokens": 60 * (step + 1),
                    "trained_tokens": 30 * (step + 1), "rejected_candidates": 0, "rejected_validation": 0,
                    "skipped": 0, "compiled": first,
                },
            )
        )  # fmt: skip
    tracker.close()
    metrics, selections = read_json_lines(folder / METRICS), read_json_lines(folder / SELECTIONS)
    facts = {
        "versions": {"greats-jax": "9.9", "jax": "8.8", "python": "3.11"},
        "device": {"kind": "cpu", "count": 1, "processes": 1},
        "memory": {"peak_bytes": 3 * 2**30, "measured": "process"},
    }
    write_summary(folder, {"status": "finished", **summarize(metrics, selections), **facts})
    return RunResult.load(folder)


@pytest.fixture(scope="session")
def run_config(tiny_model, tiny_data, tmp_path_factory) -> Callable[..., TrainConfig]:
    """Makes the configuration of a run into a folder; overrides as on the command line."""
    path = tmp_path_factory.mktemp("configurations") / "tiny.yaml"
    path.write_text(tiny_config(tiny_model, tiny_data, path.parent / "unused"))

    def make(output: Path, *overrides: str) -> TrainConfig:
        return load_config(path, [*overrides, f"steps={STEPS}", f"output={output}"])

    return make


@pytest.fixture(scope="session")
def make_run(run_config) -> Callable[..., RunResult]:
    """Writes one finished run."""

    def make(output: Path, *overrides: str, **how) -> RunResult:
        return write_run(run_config(output, *overrides), **how)

    return make


@pytest.fixture(scope="session")
def runs(make_run, tmp_path_factory) -> Path:
    """Four methods with three seeds, to be looked at and not changed."""
    folder = tmp_path_factory.mktemp("compared") / "runs"
    for method in FALL:
        for seed in range(3):
            keep = [] if method == "regular" else [f"keep={KEEP}"]
            seconds = {"regular": 0.6, "greats": 0.5}.get(method, 0.3)
            make_run(folder / f"{method}-{seed}", f"method={method}", f"seed={seed}", *keep, seconds=seconds)
    return folder


@pytest.fixture(scope="session")
def comparison(make_run, runs, tmp_path_factory) -> Path:
    """A comparison of two methods and two values of keep, of which one run is not made and one has failed."""
    folder = tmp_path_factory.mktemp("comparisons") / "keeping"
    listed = []
    for keep in (2, 3):
        for method in ("greats", "random_k"):
            for seed in range(2):
                name = f"keep={keep}-{method}-{seed}"
                listed.append({"name": name, "setting": f"keep={keep}", "method": method, "seed": seed, "config": {}})
                if name not in ("keep=3-random_k-1", "keep=2-random_k-1"):
                    make_run(folder / "runs" / name, f"method={method}", f"seed={seed}", f"keep={keep}")
    manifest = {
        "settings": ["keep=2", "keep=3"], "methods": ["greats", "random_k"], "asked": ["greats"],
        "target": "random_k", "failed": {"keep=3-random_k-1": "the disk was full"}, "runs": listed,
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def written(runs, tmp_path_factory) -> Written:
    """The report of `runs`."""
    pytest.importorskip("matplotlib")
    return write_report(runs, tmp_path_factory.mktemp("report") / "all.html")
