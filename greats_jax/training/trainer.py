"""A whole run: load, evaluate, train with selection, evaluate, save."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from greats_jax.data import CandidateSampler
from greats_jax.errors import ConfigError, RunError
from greats_jax.models import combine, load_tokenizer, partition, save_adapter, save_pretrained
from greats_jax.training.config import TrainConfig
from greats_jax.training.costs import selection_share
from greats_jax.training.draws import prefetch
from greats_jax.training.evaluation import evaluate_tasks, evaluation_sets, row_losses
from greats_jax.training.events import Evaluated, Event, Noticed, Started, Tracker
from greats_jax.training.example_facts import load_facts
from greats_jax.training.inputs import ExampleFacts, StepInputs, make_inputs
from greats_jax.training.jsonl import read_json_lines
from greats_jax.training.losses import LanguageExample, label_count, language_model_loss, language_rows
from greats_jax.training.optimizers import build_optimizer, build_schedule
from greats_jax.training.plots import plot_run
from greats_jax.training.recording import Recorder
from greats_jax.training.resolving import REGULAR, kept, needed, resolve, total_steps
from greats_jax.training.result import RunResult
from greats_jax.training.run_folder import (
    ADAPTER,
    CURVES,
    METRICS,
    MODEL,
    SELECTIONS,
    RunFolderTracker,
    abandon,
    claim,
    write_summary,
)
from greats_jax.training.scoring import keeps_direction
from greats_jax.training.selecting import Model, Selecting, prepare_selecting
from greats_jax.training.setup import TaskData, check_lengths, load_data, load_initial
from greats_jax.training.state import TrainState
from greats_jax.training.step import TARGET_ONLY, make_selective_step
from greats_jax.training.summary import summarize
from greats_jax.training.trackers import build_trackers, check_trackers

_NOT_DROPPED = ("read", "kept", "truncated", "not_sampled")  # what is counted and is no loss


class Trainer:
    """Runs what a configuration describes.

    Args:
        config: The run; checked here, so that a mistake shows before anything is loaded.
        trackers: Receive the run's events besides its folder and the trackers that the configuration names.
        should_stop: Asked between updates; once it says yes the run is saved and ends as interrupted.

    Raises:
        ConfigError: The configuration contradicts itself.
    """

    def __init__(
        self, config: TrainConfig, trackers: Sequence[Tracker] = (), should_stop: Callable[[], bool] = lambda: False
    ):
        self.config = resolve(config)
        check_trackers(self.config)
        self._trackers = tuple(trackers)
        self._should_stop = should_stop

    def fit(self) -> RunResult:
        """Train, and return what the run folder then holds.

        Raises:
            GreatsError: A file, the model or the data cannot be used; nothing has been written over.
        """
        folder = Path(self.config.output)
        claim(folder)
        try:
            run = _load(self.config)
            trackers = [
                *build_trackers(self.config, folder), RunFolderTracker(folder, self.config), *self._trackers,
            ]  # fmt: skip
        except BaseException:
            abandon(folder)
            raise

        def emit(event: Event) -> None:
            for tracker in trackers:
                tracker.record(event)

        try:
            emit(run.started(self.config, folder))
            params, interrupted = self._train(run, emit)
            _save_weights(self.config, run, params, folder)
            _finish(folder, "interrupted" if interrupted else "finished", emit)
        finally:
            for tracker in trackers:
                tracker.close()
        return RunResult.load(folder)

    def _train(self, run: "_Loaded", emit: Callable[[Event], None]) -> tuple[Any, bool]:
        """The loop. Returns the final parameters and whether it was stopped early."""
        config, model, data = self.config, run.model, run.data
        steps, selecting = total_steps(config, len(data.pool)), run.selecting
        optimizer = build_optimizer(config.optimizer, run.schedule, config.accumulate)
        has_dropout = config.lora is not None and config.lora.dropout > 0
        step, plain_step = (_make_step(config, selecting, optimizer, method) for method in (config.method, REGULAR))
        evaluate_with = row_losses(language_model_loss(model.graphdef, combine, dropout=has_dropout))
        sets = evaluation_sets(data, config.evaluate_batch)

        def evaluate(number: int, params: Any) -> None:
            emit(Evaluated(number, evaluate_tasks(sets, evaluate_with, params, model.frozen)))

        directed = keeps_direction(needed(config), config.validation.mode, selecting.options.scoring)
        state = TrainState.create(model.params, optimizer, seed=config.seed, reserve_direction=directed)
        evaluate(0, state.params)
        dropout_key = jax.random.key(config.seed)
        recorder = Recorder(emit, (*data.pool.sources, data.tasks[0]), config.accumulate)
        shares: dict[tuple[int, ...], float] = {}  # by shapes, the share of a step's FLOPs that selecting costs
        for number, drawn in enumerate(prefetch(make_inputs(config, data, run.facts), steps * config.accumulate)):
            updates, micro_batch = divmod(number, config.accumulate)
            if micro_batch == 0 and self._should_stop():
                recorder.flush()
                return state.params, True
            key = jax.random.fold_in(dropout_key, number) if has_dropout else None
            batches = _rows(drawn, key)
            shape = _shape(drawn)
            compiled = shape not in shares
            if compiled:
                recorder.flush()
                emit(Noticed(f"compiling the step for rows of {shape[1]} tokens"))
                shares[shape] = _selecting_share(config, step, plain_step, state, selecting.frozen, *batches)
            state, metrics = step(state, selecting.frozen, *batches)
            recorder.push(drawn.candidates, metrics._replace(aux=None), math.nan if compiled else shares[shape])
            due = config.evaluate_every is not None and (updates + 1) % config.evaluate_every == 0
            if due and micro_batch + 1 == config.accumulate and updates + 1 < steps:
                recorder.flush()
                evaluate(updates + 1, state.params)
                recorder.restart_clock()
        recorder.flush()
        evaluate(steps, state.params)
        return state.params, False


def _selecting_share(config: TrainConfig, step: Callable, plain_step: Callable, *arguments: Any) -> float:
    """The share of a step's FLOPs that selecting costs."""
    if config.method == TARGET_ONLY:
        return 0.0
    return selection_share(step, plain_step, *arguments, refresh_every=config.validation.refresh_every)


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


def _make_step(
    config: TrainConfig, selecting: Selecting, optimizer: optax.GradientTransformation, method: str
) -> Callable[..., Any]:
    """The compiled step of a configuration, with its rule or another one."""
    options = selecting.options
    return make_selective_step(
        selecting.loss_fn,
        optimizer,
        # A batch of validation examples takes the candidates' place: see make_inputs.
        objective=REGULAR if method == TARGET_ONLY else method,
        keep=1.0 if method == TARGET_ONLY else kept(config),
        validation=options.validation,
        refresh_every=options.refresh_every,
        learning_rate=options.learning_rate,
        is_valid=options.is_valid,
        has_aux=options.has_aux,
        row_weight=label_count if config.update_weighting == "tokens" else None,
        scoring=options.scoring,
        row_signals=options.row_signals,
        targets=options.targets,
        preconditioner=options.preconditioner,
    )


class _Loaded(NamedTuple):
    """What a run works on."""

    model: Model
    tokenizer: Any
    data: TaskData
    facts: ExampleFacts
    schedule: optax.Schedule
    selecting: Selecting

    def started(self, config: TrainConfig, folder: Path) -> Started:
        """The event that opens a run."""
        trainable, fixed = (
            sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (self.model.params, self.model.frozen)
        )
        pool = self.data.pool
        dropped = {
            source: {reason: count for reason, count in counts.items() if reason not in _NOT_DROPPED and count}
            for source, counts in pool.counts.items()
        }
        return Started(
            config=config,
            folder=folder,
            steps=total_steps(config, len(pool)),
            trainable=trainable,
            total=trainable + fixed,
            pool=len(pool),
            sources=pool.sources,
            dropped={source: reasons for source, reasons in dropped.items() if reasons},
            validation=len(self.data.validation),
            test=len(self.data.test),
        )


def _load(config: TrainConfig) -> _Loaded:
    """Model and data, and the cheap checks that need them, before anything is written."""
    tokenizer = load_tokenizer(config.model.source)
    # Data first: a mistake there should not cost the time to load a large model.
    data = load_data(config, tokenizer)
    CandidateSampler(data.pool, config.batch, config.seed)  # refuses a pool that cannot fill a batch
    model = load_initial(config)
    check_lengths(data, model.config.max_length)
    upper = config.scoring.upper_layers
    if upper is not None and upper >= model.config.layers:
        raise ConfigError(
            f"scoring.upper_layers is {upper}, but the model has {model.config.layers} layers: give fewer, or null"
        )
    facts = load_facts(config, data, tokenizer)
    parts = Model(model.config, *partition(model))
    schedule = build_schedule(config.optimizer, total_steps(config, len(data.pool)))
    return _Loaded(parts, tokenizer, data, facts, schedule, prepare_selecting(config, parts, tokenizer, schedule))


def _save_weights(config: TrainConfig, run: _Loaded, params: Any, folder: Path) -> None:
    model = combine(run.model.graphdef, params, run.model.frozen)
    if config.lora is not None:
        save_adapter(model, folder / ADAPTER, base_model=config.model.source)
    else:
        save_pretrained(model, folder / MODEL)
        run.tokenizer.save_pretrained(folder / MODEL)


def _finish(folder: Path, status: str, emit: Callable[[Event], None]) -> None:
    """Draw the curves and write the summary, which marks the run as ended."""
    metrics = read_json_lines(folder / METRICS)
    summary = summarize(metrics, read_json_lines(folder / SELECTIONS))
    try:
        plot_run(metrics, summary["sources"], folder / CURVES)
    except RunError as missing:
        emit(Noticed(str(missing)))
    write_summary(folder, {"status": status, **summary})
