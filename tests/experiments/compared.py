"""Comparisons of tiny runs, begun from a file."""

from pathlib import Path

import yaml
from runs import StopAt
from tiny import Recording, tiny_config

from greats_jax.experiments.comparison import Ended, run_comparison
from greats_jax.experiments.comparison_config import load_comparison
from greats_jax.experiments.comparison_plan import plan_comparison

METHODS = ("max_loss", "random_k")


class Watching:
    """Remembers what a comparison tells, and can ask it to stop in the midst of a run."""

    def __init__(self, stop_in: str = "", after: int = 2):
        self.told: list[str] = []
        self._stop_in, self._stop = stop_in, StopAt(after)
        self._run = ""

    def begun(self, plan, finished):
        self.told.append(f"begun after {finished} of {len(plan.runs)}")

    def run_begun(self, run):
        self.told.append(f"{run.name} begun")
        self._run = run.name
        return self._stop if run.name == self._stop_in else Recording()

    def run_ended(self, run, failure):
        self.told.append(f"{run.name} {'failed' if failure else 'finished'}")

    def should_stop(self) -> bool:
        return self._run == self._stop_in and self._stop()


class Made:
    """A comparison's file, and how far it has come."""

    stopped: tuple[Ended, Watching]
    after_stop: dict[str, bool]
    ended: tuple[Ended, Watching]

    def __init__(self, file: Path):
        self.file = file

    def plan(self, *overrides: str):
        return plan_comparison(load_comparison(self.file, overrides))

    def run(self, *overrides: str, watcher: Watching | None = None) -> tuple[Ended, Watching]:
        watcher = watcher or Watching()
        return run_comparison(self.plan(*overrides), watcher, watcher.should_stop), watcher


def write_comparison(model: Path, data: Path, folder: Path, **keys) -> Path:
    (folder / "tiny.yaml").write_text(tiny_config(model, data, folder / "run"))
    path = folder / "comparison.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "train": str(folder / "tiny.yaml"), "set": {"steps": 4, "evaluate_every": 2}, "methods": ["max_loss"],
                "controls": ["random_k"], "target": "random_k", "seeds": 2, "output": str(folder / "out"), **keys,
            }
        )
    )  # fmt: skip
    return path
