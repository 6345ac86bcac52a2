"""The runs that a report is about, whether they were named one by one or belong to a comparison."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from greats_jax.errors import RunError
from greats_jax.experiments.comparison_config import CONTROLS
from greats_jax.experiments.manifest import Manifest, is_comparison
from greats_jax.experiments.outcomes import REGULAR
from greats_jax.experiments.reading import read_run
from greats_jax.experiments.wording import failures, variants
from greats_jax.training.config_loading import dotted, plain
from greats_jax.training.result import RunResult
from greats_jax.training.run_folder import CONFIG
from greats_jax.training.step import TARGET_ONLY

_OF_THE_RUN = ("method", "seed", "output")  # keys by which runs of one setting differ anyway


class Member(NamedTuple):
    """One run of a report.

    Attributes:
        setting: What it was run with, where the runs differ by more than method and seed; else "".
        method: Its method, as tables name it.
        seed: Its seed.
        run: What its folder holds.
    """

    setting: str
    method: str
    seed: int
    run: RunResult

    @property
    def draws(self) -> bool:
        """Whether its candidates are of the pool; target_only, whatever it is called, has the validation examples."""
        return self.run.config.method != TARGET_ONLY

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Records of its updates."""
        return [record for record in self.run.metrics if record["event"] == "step"]

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Records of its evaluations."""
        return [record for record in self.run.metrics if record["event"] == "evaluation"]


class Members(NamedTuple):
    """All runs of a report.

    Attributes:
        title: What they are called together.
        runs: The runs, by setting, method and seed in the order of tables.
        asked: The methods that the report is about; the others are what they are compared with.
        target: The method that time-to-target is measured against.
        notes: What a reader must know of methods with settings of their own, and of runs that are missing, have not
            ended or had faults.
    """

    title: str
    runs: tuple[Member, ...]
    asked: tuple[str, ...]
    target: str
    notes: tuple[str, ...]

    @property
    def settings(self) -> tuple[str, ...]:
        """Settings, in the order of tables."""
        return tuple(dict.fromkeys(member.setting for member in self.runs))

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods, in the order of tables."""
        return tuple(dict.fromkeys(member.method for member in self.runs))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, ascending."""
        return tuple(sorted({member.seed for member in self.runs}))

    def of(self, setting: str, method: str) -> list[Member]:
        """Runs of one setting and method, one for each seed."""
        return [member for member in self.runs if member.setting == setting and member.method == method]


def gather(folders: Sequence[Path]) -> Members:
    """Read runs and comparisons.

    Args:
        folders: Run folders, folders of comparisons, or folders that hold run folders.

    Raises:
        RunError: There is no run in a folder, or none that has been evaluated.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    listed: list[tuple[str | None, str, RunResult]] = []
    notes: list[str] = []
    asked: list[str] = []
    targets: list[str] = []
    comparisons = sum(map(is_comparison, folders))
    for folder in folders:
        if is_comparison(folder):
            manifest = Manifest.load(folder)
            notes += [*variants(manifest.variants), *_absent(manifest)]
            within = (folder.resolve().name,) if comparisons > 1 else ()
            order = {name: place for place, name in enumerate(manifest.settings)}
            methods = {name: place for place, name in enumerate(manifest.methods)}
            there = [one for one in manifest.runs if one.finished]
            for one in sorted(there, key=lambda one: (order.get(one.setting, 0), methods.get(one.method, 0), one.seed)):
                setting = ", ".join(filter(None, (*within, one.setting)))
                listed.append((setting, one.method, read_run(one.folder)))
            asked += manifest.asked
            targets.append(manifest.target)
        else:
            runs = [read_run(path) for path in _run_folders(folder)]
            listed += [(None, run.config.method, run) for run in runs]
    listed = [one for one in listed if any(record["event"] == "evaluation" for record in one[2].metrics)]
    if not listed:
        raise RunError(f"{', '.join(map(str, folders))}: no run here has been evaluated yet; nothing can be reported")
    unfinished = [run.folder.name for _, _, run in listed if run.status != "finished"]
    if unfinished:
        notes.append(f"Not finished, and shown as far as they went: {', '.join(unfinished)}.")
    members = _named(listed)
    notes += [f"{member.run.folder.name}: {fault}." for member in members for fault in _faults(member)]
    every = tuple(dict.fromkeys(member.method for member in members))
    about = tuple(dict.fromkeys(asked)) or tuple(method for method in every if method not in CONTROLS) or every[:1]
    target = next((name for name in (*targets, REGULAR) if name in every), every[0])
    if others := sorted({name for name in targets if name != target}):
        notes.append(f"How soon is measured against {target} in all comparisons, in none against {', '.join(others)}.")
    title = folders[0].resolve().name if len(folders) == 1 else f"{len(members)} runs"
    return Members(title, members, about, target, tuple(notes))


def _run_folders(folder: Path) -> list[Path]:
    """The folder itself, or the run folders right inside it."""
    if (folder / CONFIG).is_file():
        return [folder]
    inside = sorted(path for path in folder.iterdir() if (path / CONFIG).is_file()) if folder.is_dir() else []
    if not inside:
        found = "there is no run or comparison here" if folder.is_dir() else "there is no such folder"
        raise RunError(f"{folder}: {found}; give a folder that greats train or greats compare wrote")
    return inside


def _absent(manifest: Manifest) -> list[str]:
    """What a reader must know of the runs of a comparison that have not finished, which are left out."""
    missing = [one.folder.name for one in manifest.runs if not one.finished]
    failed = {name: manifest.failed[name].rstrip(".") for name in missing if name in manifest.failed}
    notes = [f"The run {line}." for line in failures(failed)]
    if waiting := len(missing) - len(failed):
        notes.append(
            f"Of the {len(manifest.runs)} runs of the comparison, {waiting} have not finished and are left out."
        )
    return notes


def _faults(member: Member) -> list[str]:
    """What went wrong in a run that ended all the same."""
    said = {
        "skipped": "updates were skipped, for want of a candidate or validation row with a finite loss",
        "loss_spikes": "updates had a loss far above those before",
        "rejected_candidates": "candidates were left out because their loss or gradient was not finite",
        "rejected_validation": "validation rows were left out because their loss or gradient was not finite",
    }
    return [f"{count:,} {words}" for name, words in said.items() if (count := member.run.summary.get(name))]


def _named(listed: Sequence[tuple[str | None, str, RunResult]]) -> tuple[Member, ...]:
    """Runs with the settings by which those of the same method and seed differ."""
    count = Counter((setting, method, run.config.seed) for setting, method, run in listed)
    clash = {key for key, number in count.items() if number > 1}
    flats = [flat(plain(run.config)) for _, _, run in listed]
    differing = [
        key
        for key in dict.fromkeys(key for one in flats for key in one)
        if key.split(".")[0] not in _OF_THE_RUN and len({one.get(key) for one in flats}) > 1
    ]
    members = []
    taken: set[tuple[str, str, int]] = set()
    for (setting, method, run), one in zip(listed, flats, strict=True):
        if setting is None:
            setting = ", ".join(f"{key}={one.get(key)}" for key in differing) if clash else ""
        if (setting, method, run.config.seed) in taken:  # the same run twice, or the same again
            setting = ", ".join(filter(None, (setting, run.folder.resolve().name)))
        taken.add((setting, method, run.config.seed))
        members.append(Member(setting, method, run.config.seed, run))
    order = {name: place for place, name in enumerate(dict.fromkeys(member.setting for member in members))}
    methods = {name: place for place, name in enumerate(dict.fromkeys(member.method for member in members))}
    return tuple(sorted(members, key=lambda m: (order[m.setting], methods[m.method], m.seed)))


def flat(tree: Any) -> dict[str, str]:
    """Dotted keys of nested sections and lists, with their values as text."""
    return {key: "null" if value is None else str(value) for key, value in dotted(tree)}
