"""A whole run: load, evaluate, train with selection, evaluate, save."""

import functools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from greats_jax.data import Candidates, CandidateSampler, LanguageBatch, collate
from greats_jax.errors import ConfigError, RunError
from greats_jax.models import (
    DecoderConfig,
    combine,
    cut_layers,
    load_tokenizer,
    partition,
    save_adapter,
    save_pretrained,
)
from greats_jax.selection import get
from greats_jax.training.config import ScoringConfig, TrainConfig, kept, resolve, total_steps
from greats_jax.training.costs import selection_share
from greats_jax.training.draws import prefetch, validation_rows
from greats_jax.training.evaluation import EvaluationSet, evaluate_task, row_losses
from greats_jax.training.events import Evaluated, Event, Noticed, Started, Tracker
from greats_jax.training.jsonl import read_json_lines
from greats_jax.training.losses import (
    has_labels,
    label_count,
    language_model_loss,
    language_rows,
    split_language_model_loss,
)
from greats_jax.training.optimizers import build_optimizer, build_schedule
from greats_jax.training.plots import plot_run
from greats_jax.training.recording import Recorder
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
from greats_jax.training.scoring import Projection, Scoring
from greats_jax.training.setup import TaskData, check_lengths, load_data, load_initial
from greats_jax.training.split_loss import SplitLoss
from greats_jax.training.state import TrainState
from greats_jax.training.step import make_selective_step
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
        config = self.config
        steps = total_steps(config, len(run.data.pool))
        schedule = build_schedule(config.optimizer, steps)
        optimizer = build_optimizer(config.optimizer, schedule, config.accumulate)
        has_dropout = config.lora is not None and config.lora.dropout > 0
        loss_fn = language_model_loss(run.graphdef, combine, dropout=has_dropout)
        upper = config.scoring.upper_layers
        scored = loss_fn if upper is None else _cut_loss(upper, run, has_dropout)
        step = _make_step(config, scored, optimizer, schedule, config.method)
        plain_step = _make_step(config, loss_fn, optimizer, schedule, "regular")
        losses_of = row_losses(loss_fn)
        pad_id = run.data.pool.pad_id
        validation = EvaluationSet(run.data.validation, config.evaluate_batch, pad_id)
        test = EvaluationSet(run.data.test, config.evaluate_batch, pad_id)

        def evaluate(number: int, params: Any) -> None:
            emit(Evaluated(number, evaluate_task(validation, test, losses_of, params, run.frozen)))

        directed = config.validation.mode == "cached" or config.scoring.micro_batches > 1
        state = TrainState.create(run.params, optimizer, seed=config.seed, reserve_direction=directed)
        evaluate(0, state.params)
        dropout_key = jax.random.key(config.seed)
        recorder = Recorder(emit, run.data.pool.sources, config.accumulate)
        selecting: dict[int, float] = {}  # by row length, the share of a step's FLOPs that selecting costs
        draw = _batch_maker(config, run.data)
        for number, (candidates, rows) in enumerate(prefetch(draw, steps * config.accumulate)):
            updates, micro_batch = divmod(number, config.accumulate)
            if micro_batch == 0 and self._should_stop():
                recorder.flush()
                return state.params, True
            length = candidates.batch.input_ids.shape[1]
            key = jax.random.fold_in(dropout_key, number) if has_dropout else None
            batches = language_rows(candidates.batch, key), None if rows is None else language_rows(rows)
            compiled = length not in selecting
            if compiled:
                recorder.flush()
                emit(Noticed(f"compiling the step for rows of {length} tokens"))
                selecting[length] = selection_share(
                    step, plain_step, state, run.frozen, *batches, refresh_every=config.validation.refresh_every
                )
            state, metrics = step(state, run.frozen, *batches)
            recorder.push(candidates, metrics, math.nan if compiled else selecting[length])
            due = config.evaluate_every is not None and (updates + 1) % config.evaluate_every == 0
            if due and micro_batch + 1 == config.accumulate and updates + 1 < steps:
                recorder.flush()
                evaluate(updates + 1, state.params)
                recorder.restart_clock()
        recorder.flush()
        evaluate(steps, state.params)
        return state.params, False


def _cut_loss(upper: int, run: "_Loaded", has_dropout: bool) -> SplitLoss:
    """The loss cut below the layers that score."""
    at = run.architecture.layers - upper
    cut = functools.partial(cut_layers, at=at, tied=run.architecture.tied)
    return split_language_model_loss(run.graphdef, combine, cut, at, dropout=has_dropout)


def _scoring(config: ScoringConfig) -> Scoring:
    """The step's options as the configuration spells them."""
    projection = None if config.projection is None else Projection(config.projection, config.alignment)
    pattern = None if config.leaves is None else re.compile(config.leaves)
    leaves = None if pattern is None else lambda path: pattern.search(path) is not None
    return Scoring(config.passes, config.micro_batches, leaves, projection)


def _make_step(
    config: TrainConfig,
    loss_fn: Callable[..., jax.Array] | SplitLoss,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    method: str,
) -> Callable[..., Any]:
    """The compiled step of a configuration, with its rule or another one."""
    return make_selective_step(
        loss_fn,
        optimizer,
        objective=method,
        keep=kept(config),
        validation=config.validation.mode,
        refresh_every=config.validation.refresh_every,
        learning_rate=lambda batches: schedule(jnp.asarray(batches) // config.accumulate),
        is_valid=has_labels,
        row_weight=label_count if config.update_weighting == "tokens" else None,
        scoring=_scoring(config.scoring),
    )


class _Loaded(NamedTuple):
    """What a run works on."""

    architecture: DecoderConfig
    graphdef: Any
    params: Any
    frozen: Any
    tokenizer: Any
    data: TaskData

    def started(self, config: TrainConfig, folder: Path) -> Started:
        """The event that opens a run."""
        trainable, fixed = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (self.params, self.frozen))
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
    return _Loaded(model.config, *partition(model), tokenizer, data)


def _batch_maker(config: TrainConfig, data: TaskData) -> Callable[[int], tuple[Candidates, LanguageBatch | None]]:
    """Candidates and validation rows of any micro-batch; padded to one length where they share a pass.

    A rule that does not look at validation examples gets none, and its batches are no longer than its candidates.
    """
    guided = "alignment" in get(config.method).needs
    longest = max(len(example.input_ids) for example in data.validation)
    merged = guided and config.validation.mode == "merged"
    sampler = CandidateSampler(
        data.pool,
        config.batch,
        config.seed,
        buckets=config.data.buckets,
        group_by_length=config.data.group_by_length,
        min_length=longest if merged else 0,
    )

    def make(number: int) -> tuple[Candidates, LanguageBatch | None]:
        candidates = sampler(number)
        if not guided:
            return candidates, None
        rows = validation_rows(data.validation, config.validation.per_step, config.seed, number)
        length = candidates.batch.input_ids.shape[1] if merged else longest
        return candidates, collate(rows, length, data.pool.pad_id)

    return make


def _save_weights(config: TrainConfig, run: _Loaded, params: Any, folder: Path) -> None:
    model = combine(run.graphdef, params, run.frozen)
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
