"""A whole run: load, evaluate, train with selection, evaluate, save; begun anew or gone on with."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax

from greats_jax.errors import RunError
from greats_jax.models import combine, save_adapter, save_pretrained
from greats_jax.training.checkpoints import Checkpoints
from greats_jax.training.config import TrainConfig
from greats_jax.training.events import Event, Noticed, Tracker
from greats_jax.training.folder_lock import locked
from greats_jax.training.guards import Guard
from greats_jax.training.jsonl import read_json_lines
from greats_jax.training.loop import Loop
from greats_jax.training.mesh import row_parts
from greats_jax.training.out_of_memory import out_of_memory_explained
from greats_jax.training.placement import on_host
from greats_jax.training.plots import plot_run
from greats_jax.training.preparing import Prepared, initial_state, prepare
from greats_jax.training.processes import together, writes
from greats_jax.training.resolving import groups_of, resolve
from greats_jax.training.result import RunResult
from greats_jax.training.resuming import check_same_run, newest_whole, origin_of
from greats_jax.training.run_folder import (
    ADAPTER,
    CHECKPOINTS,
    CURVES,
    METRICS,
    MODEL,
    SELECTIONS,
    NoRecords,
    RunFolderTracker,
    Standing,
    abandon,
    claim,
    standing,
    write_summary,
)
from greats_jax.training.saving import Progress, Saved, Saver
from greats_jax.training.shelf import Shelf
from greats_jax.training.state import TrainState
from greats_jax.training.summary import summarize
from greats_jax.training.surroundings import PeakMemory, device, versions
from greats_jax.training.trackers import build_trackers, check_trackers


class Trainer:
    """Runs what a configuration describes.

    Args:
        config: The run; checked here, so that a mistake shows before anything is loaded.
        trackers: Receive the run's events besides its folder and the trackers that the configuration names.
        should_stop: Asked between updates and between batches of an evaluation; once it says yes the run is saved and
            ends as interrupted.
        resume: Go on with the run in the folder if there is one; the same call begins it where there is none.
        shelf: Where what is read and compiled is left for the next run of this process.

    Raises:
        ConfigError: The configuration contradicts itself.
    """

    def __init__(
        self,
        config: TrainConfig,
        trackers: Sequence[Tracker] = (),
        should_stop: Callable[[], bool] = lambda: False,
        *,
        resume: bool = False,
        shelf: Shelf | None = None,
    ):
        self.config = resolve(config)
        check_trackers(self.config)
        self._trackers = tuple(trackers)
        self._should_stop = should_stop
        self._resume = resume
        self._shelf = shelf

    def fit(self) -> RunResult:
        """Train, and return what the run folder then holds.

        Raises:
            GreatsError: A file, the model or the data cannot be used, or the folder holds what this run cannot go on
                with; nothing has been written over.
        """
        folder = Path(self.config.output)
        with together("looking at the run folder"):
            found = standing(folder)
        with ExitStack() as held:
            with together("taking the run folder"):
                if self._resume and found in (Standing.UNFINISHED, Standing.FINISHED):
                    check_same_run(folder, self.config)
                elif writes():
                    claim(folder)
                if writes() and found is not Standing.FINISHED:
                    held.callback(abandon, folder)
                    held.enter_context(locked(folder))
            if found is Standing.FINISHED:
                for tracker in self._trackers if writes() else ():
                    tracker.record(Noticed(f"{folder}: this run has finished already; there is nothing left to do"))
                return RunResult.load(folder)
            with out_of_memory_explained(self.config):
                return self._fit(folder)

    def _fit(self, folder: Path) -> RunResult:
        memory = PeakMemory()
        shelf = Shelf() if self._shelf is None else self._shelf
        run = prepare(self.config, shelf)
        groups = groups_of(self.config, row_parts(run.mesh))
        origin = origin_of(self.config, run.data, run.facts, run.model.params, run.selecting.frozen, groups)
        origin["pool"] = run.pool  # before tasks took from it, so that runs of other seeds can be compared
        with ExitStack() as at_end:
            checkpoints = at_end.enter_context(closing(Checkpoints(folder / CHECKPOINTS, self.config.checkpoint)))
            notices: list[str] = []
            state, placement = initial_state(self.config, run)
            state, saved = self._start(state, checkpoints, folder, origin, notices.append)
            with together("opening the records"):
                made = build_trackers(self.config, folder, lambda text: emit(Noticed(text))) if writes() else ()
                built = [at_end.enter_context(closing(tracker)) for tracker in made]
                kept = RunFolderTracker(folder, self.config, saved.lengths) if writes() else NoRecords()
                records = at_end.enter_context(closing(kept))
                given = [at_end.enter_context(closing(tracker)) for tracker in self._trackers if writes()]
            guard = Guard(self.config.guards, self.config.accumulate, checkpoints.numbers)
            guard.remember(read_json_lines(folder / METRICS))

            def emit(event: Event) -> None:
                for tracker in (*built, records, *given):
                    tracker.record(event)
                if notice := guard.check(event):
                    emit(Noticed(notice))

            emit(run.started(self.config, folder, saved.progress.updates))
            for text in notices:
                emit(Noticed(text))
            saver = Saver(self.config.checkpoint, checkpoints, records, origin, emit, lambda: guard.sound)
            loop = Loop(self.config, run, placement, emit, self._should_stop, shelf)
            state, ended = loop.run(state, saved.progress, saver)
            if not ended:
                saver.finish()
                return RunResult.interrupted(folder)
            params = on_host(state.params, placement)
            with together("saving the weights"):
                if writes():
                    _save_weights(self.config, run, params, folder)
                    _finish(folder, emit, {"loss_spikes": guard.spikes, "memory": memory.read(), "origin": origin})
        return RunResult.load(folder)

    def _start(
        self,
        state: TrainState,
        checkpoints: Checkpoints,
        folder: Path,
        origin: dict[str, Any],
        notice: Callable[[str], None],
    ) -> tuple[TrainState, Saved]:
        """The state to go on from: that of a checkpoint, or the first one, whose place the other takes."""
        if not checkpoints.numbers():
            checkpoints.discard(())
            return state, Saved(Progress(), {}, origin)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        for leaf in jax.tree.leaves(state):
            leaf.delete()
        return newest_whole(checkpoints, like, folder, origin, notice)


def _save_weights(config: TrainConfig, run: Prepared, params: Any, folder: Path) -> None:
    model = combine(run.model.graphdef, params, run.model.frozen)
    if config.lora is not None:
        save_adapter(model, folder / ADAPTER, base_model=config.model.source)
    else:
        save_pretrained(model, folder / MODEL)
        run.tokenizer.save_pretrained(folder / MODEL)


def _finish(folder: Path, emit: Callable[[Event], None], facts: dict[str, Any]) -> None:
    """Draw the curves and write the summary, which marks the run as ended."""
    metrics = read_json_lines(folder / METRICS)
    summary = summarize(metrics, read_json_lines(folder / SELECTIONS))
    try:
        plot_run(metrics, summary["sources"], folder / CURVES)
    except RunError as missing:
        emit(Noticed(str(missing)))
    surroundings = {"versions": versions(), "device": device()}
    write_summary(folder, {"status": "finished", **summary, **facts, **surroundings})
