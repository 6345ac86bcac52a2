"""The updates of a run, from wherever it stands to its end or to the moment it is asked to stop."""

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

import jax

from greats_jax.data import LanguageBatch
from greats_jax.models import combine
from greats_jax.selection import get
from greats_jax.tasks.measuring import MeasuringStopped
from greats_jax.training.config import TrainConfig
from greats_jax.training.costs import selection_share
from greats_jax.training.draws import prefetch
from greats_jax.training.evaluation import (
    evaluate_tasks,
    evaluation_sets,
    measure_benchmarks,
    scores_of,
    too_long,
)
from greats_jax.training.events import Evaluated, Event, Noticed
from greats_jax.training.inputs import StepInputs, make_inputs
from greats_jax.training.losses import LanguageExample, language_rows
from greats_jax.training.placement import Placement
from greats_jax.training.preparing import Prepared
from greats_jax.training.processes import alone, any_says
from greats_jax.training.programs import programs_of
from greats_jax.training.recording import Recorder, Work
from greats_jax.training.resolving import REGULAR, kept, total_steps
from greats_jax.training.saving import Progress, Saver
from greats_jax.training.shelf import Shelf
from greats_jax.training.state import TrainState
from greats_jax.training.step import TARGET_ONLY
from greats_jax.training.trial import seconds_of_rule


class Loop:
    """Evaluates, updates and saves, each when it is time to.

    What happens depends on the state and on how many updates are behind it, and on nothing else: a run that is stopped
    between two updates and gone on with is the run that was never stopped.

    Args:
        config: The resolved configuration.
        run: What it works on.
        placement: Where arrays live.
        emit: Receives the events.
        should_stop: Asked between updates and between batches of an evaluation.
        shelf: Holds the compiled programs of runs before this one.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: Prepared,
        placement: Placement,
        emit: Callable[[Event], None],
        should_stop: Callable[[], bool],
        shelf: Shelf,
    ):
        self._config, self._run, self._placement = config, run, placement
        self._emit, self._should_stop = emit, should_stop
        self._steps = total_steps(config, len(run.data.pool))
        self._sources = (*run.data.pool.sources, run.data.tasks[0])
        self._dropout_key = jax.random.key(config.seed)
        self._has_dropout = config.lora is not None and config.lora.dropout > 0
        self._programs = programs_of(config, run, placement, shelf)
        parts = placement.row_parts
        self._sets = evaluation_sets(run.data, -(-config.evaluate_batch // parts) * parts)
        self._met: set[tuple[int, ...]] = set()  # shapes of batches that the run has met

    def run(self, state: TrainState, progress: Progress, saver: Saver) -> tuple[TrainState, bool]:
        """Go on from a state.

        Returns:
            The state, and whether that is the end: if not, it was stopped and has been saved.
        """
        recorder = Recorder(self._emit, self._sources, self._config.accumulate, progress.totals)
        updates = progress.updates
        with closing(self._inputs(updates)) as inputs:
            while True:
                if self._to_evaluate(updates, progress.evaluated):
                    progress = progress._replace(totals=recorder.flush())
                    metrics = self._evaluate(updates, state)
                    if metrics is None:
                        saver.save(state, progress)
                        return state, False
                    progress = progress.with_evaluation(metrics)
                    recorder.restart_clock()
                ended = updates == self._steps
                stopped, due = any_says(not ended and self._should_stop(), saver.due(updates))
                if stopped or due:
                    progress = progress._replace(totals=recorder.flush())
                    saver.save(state, progress)
                    recorder.restart_clock()
                if ended or stopped:
                    return state, ended
                for _ in range(self._config.accumulate):
                    began = time.perf_counter()
                    number, drawn = next(inputs)
                    state = self._micro_batch(state, number, drawn, recorder, time.perf_counter() - began)
                updates += 1

    def _inputs(self, updates: int) -> Generator[tuple[int, StepInputs], None, None]:
        """Number and inputs of each micro-batch after so many updates."""
        make = make_inputs(self._config, self._run.data, self._run.facts)
        first, end = updates * self._config.accumulate, self._steps * self._config.accumulate
        return prefetch(lambda ahead: (first + ahead, make(first + ahead)), end - first)

    def _micro_batch(
        self, state: TrainState, number: int, drawn: StepInputs, recorder: Recorder, waited: float
    ) -> TrainState:
        """Select among one batch of candidates, and learn from what is kept."""
        key = jax.random.fold_in(self._dropout_key, number) if self._has_dropout else None
        batches = self._placement.put_rows(_rows(drawn, key))
        shape, frozen, programs = _shape(drawn), self._run.selecting.frozen, self._programs
        compiled = shape not in self._met  # with a shelf it may have been before: the same updates count in all runs
        if compiled:
            self._met.add(shape)
            recorder.flush()
        if shape not in programs.shares:
            self._emit(Noticed(f"compiling the step for rows of {shape[1]} tokens"))
            programs.shares[shape] = self._selecting_share(state, frozen, *batches)
            programs.picking = self._seconds_picking() if programs.picking is None else programs.picking
        state, metrics = programs.step(state, frozen, *batches)
        work = Work(math.nan if compiled else programs.shares[shape], programs.picking or 0.0, waited)
        recorder.push(drawn.candidates, metrics._replace(aux=None), work)
        return state

    def _selecting_share(self, *arguments: Any) -> float:
        """The share of a step's FLOPs that selecting costs."""
        if self._config.method == TARGET_ONLY:
            return 0.0
        every, programs = self._config.validation.refresh_every, self._programs
        return selection_share(programs.step, programs.plain_step, *arguments, refresh_every=every)

    def _seconds_picking(self) -> float:
        """How long the rule itself takes; 0 where it cannot be told."""
        if self._config.method in (TARGET_ONLY, REGULAR):
            return 0.0
        return seconds_of_rule(get(self._config.method), self._config.batch, kept(self._config)) or 0.0

    def _to_evaluate(self, updates: int, evaluated: int) -> bool:
        """Whether the evaluation after so many updates is still to be made."""
        every = self._config.evaluate_every
        due = updates in (0, self._steps) or (every is not None and updates % every == 0)
        return due and evaluated < updates

    def _evaluate(self, updates: int, state: TrainState) -> dict[str, float] | None:
        """Measure and report perplexities and scores of the tasks; None where the run was asked to stop meanwhile."""

        def losses_of(params: Any, frozen: Any, batch: LanguageBatch) -> jax.Array:
            if self._to_stop_alone():
                raise MeasuringStopped
            return self._programs.losses_of(params, frozen, batch)

        try:
            metrics = evaluate_tasks(self._sets, losses_of, state.params, self._run.model.frozen)
            began = time.perf_counter()
            scores = self._scores(updates, state)
        except MeasuringStopped:
            return None
        metrics |= {**scores, "seconds": metrics["seconds"] + time.perf_counter() - began}
        self._emit(Evaluated(updates, metrics))
        return metrics

    def _scores(self, updates: int, state: TrainState) -> dict[str, float]:
        """The tasks' own scores, where they are measured after so many updates."""
        wanted = {"never": (), "ends": (0, self._steps), "always": (updates,)}[self._config.measure]
        if updates not in wanted:
            return {}
        data, parts = self._run.data, self._run.model
        model = combine(parts.graphdef, state.params, parts.frozen)
        measured = measure_benchmarks(data, model, self._run.tokenizer, self._config, self._to_stop_alone)
        for notice in too_long(measured, self._config.data.max_length) if updates == 0 else ():
            self._emit(Noticed(notice))
        return scores_of(measured, data.tasks)

    def _to_stop_alone(self) -> bool:
        """Whether to leave an evaluation: of several processes the others would not know, and ask again after it."""
        return alone() and self._should_stop()


def _rows(drawn: StepInputs, key: jax.Array | None) -> tuple[LanguageExample, LanguageExample | None]:
    """Candidates and validation rows for the step."""
    candidates = language_rows(drawn.candidates.batch, key, drawn.candidate_extras)
    if drawn.validation is None:
        return candidates, None
    return candidates, language_rows(drawn.validation, extras=drawn.validation_extras)


def _shape(drawn: StepInputs) -> tuple[int, ...]:
    """What a compiled step belongs to: rows and tokens of its batches."""
    validation = () if drawn.validation is None else drawn.validation.input_ids.shape
    return (*drawn.candidates.batch.input_ids.shape, *validation)
