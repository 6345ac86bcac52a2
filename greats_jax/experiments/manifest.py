"""The file that says which run of a comparison is what, and that keeps a comparison from changing half-way."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from greats_jax.errors import ConfigError, RunError
from greats_jax.experiments.comparison_plan import RUNS, Plan
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import dotted, from_tree, plain
from greats_jax.training.config_values import Origin
from greats_jax.training.jsonl import dumps
from greats_jax.training.resuming import MAY_CHANGE
from greats_jax.training.run_folder import CONFIG, SUMMARY, write_whole

MANIFEST = "comparison.json"
_SHOWN = 12  # differences told of a comparison that has changed


class ListedRun(NamedTuple):
    """A run of a comparison, as its manifest lists it.

    Attributes:
        folder: The run folder, which need not exist yet.
        setting: Value of the changing setting; "" where nothing changes.
        method: The method, as tables name it.
        seed: Its seed.
    """

    folder: Path
    setting: str
    method: str
    seed: int

    @property
    def finished(self) -> bool:
        """Whether the run has ended."""
        return (self.folder / CONFIG).is_file() and (self.folder / SUMMARY).is_file()


class Manifest(NamedTuple):
    """What a comparison is made of.

    Attributes:
        folder: The comparison's folder.
        runs: Its runs, in the order they are made.
        settings: Values of the changing setting, in the order of tables.
        methods: Methods, in the order of tables.
        asked: Those of them that the comparison is about.
        target: The method that time-to-target is measured against.
        variants: Rule and settings of the methods that have more than the rule they are called by, by name.
        failed: Why runs failed, by name.
        configs: Configuration of each run, by name, as `plain` writes it.
    """

    folder: Path
    runs: tuple[ListedRun, ...]
    settings: tuple[str, ...]
    methods: tuple[str, ...]
    asked: tuple[str, ...]
    target: str
    variants: dict[str, str]
    failed: dict[str, str]
    configs: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, plan: Plan) -> "Manifest":
        """The manifest of a comparison that begins."""
        return cls(
            folder=plan.folder,
            runs=tuple(ListedRun(plan.folder / RUNS / x.name, x.setting, x.method, x.seed) for x in plan.runs),
            settings=plan.settings,
            methods=plan.methods,
            asked=plan.asked,
            target=plan.target,
            variants=plan.variants,
            failed={},
            configs={run.name: plain(run.config) for run in plan.runs},
        )

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read it from a comparison's folder, wherever that has been moved to.

        Raises:
            RunError: There is none, or it is damaged.
        """
        path = folder / MANIFEST
        try:
            tree = json.loads(path.read_bytes())
            names = ("settings", "methods", "asked")
            return cls(
                folder=folder,
                runs=tuple(
                    ListedRun(folder / RUNS / x["name"], str(x["setting"]), str(x["method"]), int(x["seed"]))
                    for x in tree["runs"]
                ),
                **{name: tuple(map(str, tree[name])) for name in names},
                target=str(tree["target"]),
                # Comparisons of earlier versions did not write them down.
                variants={str(name): str(what) for name, what in tree.get("variants", {}).items()},
                failed={str(name): str(why) for name, why in tree["failed"].items()},
                configs={x["name"]: x["config"] for x in tree["runs"]},
            )
        except FileNotFoundError:
            raise RunError(f"{folder}: there is no comparison here (no {MANIFEST})") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{path}: not the manifest of a comparison ({reason}); the folder is damaged") from None

    def write(self) -> None:
        """Write it into the comparison's folder, in the place of what is there.

        Raises:
            RunError: It cannot be written.
        """
        runs = [
            {"name": x.folder.name, **x._asdict(), "config": self.configs[x.folder.name]} | {"folder": None}
            for x in self.runs
        ]
        tree = {
            "settings": self.settings,
            "methods": self.methods,
            "asked": self.asked,
            "target": self.target,
            "variants": self.variants,
            "failed": self.failed,
            "runs": [{key: value for key, value in run.items() if key != "folder"} for run in runs],
        }
        write_whole(self.folder / MANIFEST, json.dumps(json.loads(dumps(tree)), indent=1, ensure_ascii=False) + "\n")


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds a comparison."""
    return (folder / MANIFEST).is_file()


def check_grown(old: Manifest, new: Manifest) -> None:
    """Make sure that a comparison goes on with what was begun: it may have more runs, but none may be another.

    Raises:
        ConfigError: A run is gone or would compute something else; its notes are the differences, one a line.
    """
    lines: dict[str, int] = {}
    for listed in old.runs:
        name = listed.folder.name
        if name not in new.configs:
            lines[f"{name}: no longer in the comparison"] = 1
            continue
        before, after = dict(dotted(_completed(old, name))), dict(dotted(new.configs[name]))
        for key in {**before, **after}:
            if key.split(".")[0] not in MAY_CHANGE and before.get(key) != after.get(key):
                line = f"{key}: {_shown(before.get(key))} -> {_shown(after.get(key))}"
                lines[line] = lines.get(line, 0) + 1
    if not lines:
        return
    error = ConfigError(
        f"{old.folder}: the comparison in this folder was begun as another one; it may get more methods, seeds and "
        "values, but what is there must stay: take the old values back, or choose another folder with output=..."
    )
    for line, runs in list(lines.items())[:_SHOWN]:
        error.add_note(f"{line} ({runs} runs)" if runs > 1 else line)
    if len(lines) > _SHOWN:
        error.add_note(f"and {len(lines) - _SHOWN} more differences")
    raise error


def _completed(manifest: Manifest, name: str) -> dict[str, Any]:
    """A run's configuration with the defaults of keys that an older version did not have."""
    return plain(from_tree(manifest.configs[name], (), Origin(str(manifest.folder / MANIFEST), (), TrainConfig)))


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
