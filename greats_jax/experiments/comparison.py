"""Makes the runs of a comparison, one after another, going on where it was stopped."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
from jax.experimental.compilation_cache import compilation_cache

from greats_jax.errors import GreatsError, RunError
from greats_jax.experiments.comparison_plan import Plan, PlannedRun
from greats_jax.experiments.curves import Curve, curve_of
from greats_jax.experiments.fairness import Beginning, beginning_of, check_alike
from greats_jax.experiments.manifest import MANIFEST, Manifest, check_grown, is_comparison
from greats_jax.experiments.tidy import write_table
from greats_jax.training.events import Tracker
from greats_jax.training.folder_lock import LOCK, locked
from greats_jax.training.preparing import read_data
from greats_jax.training.processes import alone
from greats_jax.training.result import RunResult
from greats_jax.training.resuming import check_same_run
from greats_jax.training.run_folder import ADAPTER, CHECKPOINTS, MODEL, Standing, standing
from greats_jax.training.shelf import Shelf
from greats_jax.training.trainer import Trainer

COMPILATIONS = ".compilations"
_IN_PASSING = {LOCK, f".{MANIFEST}.new"}  # what a comparison killed in its first moments may leave


class Watcher(Protocol):
    """Is told how a comparison goes."""

    def begun(self, plan: Plan, finished: int) -> None:
        """The comparison goes on after so many finished runs."""
        ...

    def run_begun(self, run: PlannedRun) -> Tracker:
        """A run begins, or is gone on with; what is returned receives its events."""
        ...

    def run_ended(self, run: PlannedRun, failure: str | None) -> None:
        """It has finished, or failed for a reason."""
        ...


class Ended(NamedTuple):
    """How a comparison ended.

    Attributes:
        finished: Runs that have finished, those of earlier calls included.
        failed: Why others have not, by name.
        stopped: Whether it was asked to stop before it was done.
    """

    finished: int
    failed: dict[str, str]
    stopped: bool


def run_comparison(plan: Plan, watcher: Watcher, should_stop: Callable[[], bool] = lambda: False) -> Ended:
    """Make every run that has not finished yet; a run that fails is noted, and the others go on.

    After each run the table of all of them is written anew (see `tidy.write_table`).

    Args:
        plan: The runs.
        watcher: Is told what happens.
        should_stop: Asked between updates; once it says yes the current run is saved and the comparison ends.

    Raises:
        ConfigError: The folder holds a comparison that this one does not go on with.
        RunError: The folder cannot be used, or two runs that are to be compared did not begin alike.
        GreatsError: Data of a setting cannot be used; no run was begun.
    """
    if not alone():
        raise RunError("the runs of a comparison are of one process; start one")
    folder = plan.folder
    _claim(folder)
    with locked(folder):
        manifest = Manifest.of(plan)
        if is_comparison(folder):
            old = Manifest.load(folder)
            check_grown(old, manifest)
            lacking = {run.name for run in plan.runs if standing(run.folder) is not Standing.FINISHED}
            manifest = manifest._replace(failed={name: why for name, why in old.failed.items() if name in lacking})
        shelf = Shelf()
        check_data(plan, shelf)
        manifest.write()
        with compiled_programs_in(folder / COMPILATIONS, plan.compilation_cache):
            return _run_all(plan, manifest, shelf, watcher, should_stop)


def check_data(plan: Plan, shelf: Shelf) -> None:
    """Read tokenizer, pool and tasks of every setting that has runs to make, before the first of them begins.

    Args:
        plan: The runs.
        shelf: Keeps what was read for them.

    Raises:
        GreatsError: Something cannot be used; its note names the setting.
    """
    to_do: dict[str, PlannedRun] = {}
    for run in plan.runs:
        if standing(run.folder) is not Standing.FINISHED:
            to_do.setdefault(run.setting, run)
    for setting, run in reversed(to_do.items()):  # the first run finds on the shelf what was read last
        try:
            read_data(run.config, shelf)
        except GreatsError as error:
            if setting:
                error.add_note(f"met first in the runs of {setting}; none has been begun")
            raise


def _run_all(plan: Plan, manifest: Manifest, shelf: Shelf, watcher: Watcher, should_stop: Callable[[], bool]) -> Ended:
    begun: dict[str, list[Beginning]] = {}
    curves: dict[str, Curve] = {}  # of the runs that have finished
    for run in plan.runs:
        if standing(run.folder) is Standing.FINISHED:
            check_same_run(run.folder, run.config)
            result = RunResult.load(run.folder)
            _note(begun, run, result)
            _tidy_up(plan, run)
            curves[run.name] = curve_of(result, run.setting, run.method, run.seed)
    if curves:  # a process killed at the end of a run had not come to it
        _write_table(plan, curves)
    watcher.begun(plan, len(curves))
    stopped = False
    for run in plan.runs:
        if run.name in curves:
            continue
        if stopped := should_stop():
            break
        tracker = watcher.run_begun(run)
        try:
            result = Trainer(run.config, [tracker], should_stop, resume=True, shelf=shelf).fit()
        except GreatsError as error:
            reason = "; ".join([str(error), *getattr(error, "__notes__", ())])
            manifest = manifest._replace(failed={**manifest.failed, run.name: reason})
            manifest.write()
            watcher.run_ended(run, reason)
            continue
        if stopped := result.status == "interrupted":
            break
        _tidy_up(plan, run)
        curves[run.name] = curve_of(result, run.setting, run.method, run.seed)
        if run.name in manifest.failed:
            manifest = manifest._replace(failed={n: why for n, why in manifest.failed.items() if n != run.name})
            manifest.write()
        _note(begun, run, result)
        _write_table(plan, curves)
        watcher.run_ended(run, None)
    return Ended(len(curves), manifest.failed, stopped)


def _tidy_up(plan: Plan, run: PlannedRun) -> None:
    """Remove what a finished run no longer needs, unless its weights are to stay."""
    if not plan.keep_weights:
        for name in (CHECKPOINTS, ADAPTER, MODEL):
            shutil.rmtree(run.folder / name, ignore_errors=True)


def _write_table(plan: Plan, curves: dict[str, Curve]) -> None:
    write_table([curves[run.name] for run in plan.runs if run.name in curves], plan.folder)


def _note(begun: dict[str, list[Beginning]], run: PlannedRun, result: RunResult) -> None:
    """Compare how a run began with the others of its setting, and remember it for those to come."""
    others = begun.setdefault(run.setting, [])
    one = beginning_of(result)
    check_alike(one, others)
    others.append(one)


def _claim(folder: Path) -> None:
    """Create the comparison's folder unless it is one already."""
    try:
        found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if (folder.exists() and not folder.is_dir()) or (found - _IN_PASSING and not is_comparison(folder)):
            raise RunError(f"{folder}: there is something else here; choose another folder with output=...")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"{folder}: cannot be used ({reason}); choose another folder with output=...") from None


@contextmanager
def compiled_programs_in(folder: Path, named: str | None = None) -> Iterator[None]:
    """Keep compiled programs in a folder while the context lasts, unless the user keeps them somewhere already.

    Runs that differ in their seeds compile the same programs; so does a comparison that is gone on with.

    Args:
        folder: Where they go that the user gave no place.
        named: The place that the configuration gives them; it goes before that of the environment.
    """
    if named is None and getattr(jax.config, "jax_compilation_cache_dir", None):
        yield
        return
    settings = {
        "jax_compilation_cache_dir": named or str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # what was compiled without the folder decided that there is none
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
