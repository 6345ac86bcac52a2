"""Everything a run works on, loaded and checked before anything is written."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from greats_jax.data import CandidateSampler
from greats_jax.errors import ConfigError
from greats_jax.models import load_tokenizer, partition
from greats_jax.selection import get
from greats_jax.training.config import TrainConfig
from greats_jax.training.events import Started
from greats_jax.training.example_facts import load_facts
from greats_jax.training.inputs import ExampleFacts
from greats_jax.training.optimizers import build_optimizer, build_schedule
from greats_jax.training.resolving import needed, total_steps
from greats_jax.training.scoring import keeps_direction
from greats_jax.training.selecting import Model, Selecting, prepare_selecting
from greats_jax.training.setup import TaskData, check_lengths, load_data, load_initial
from greats_jax.training.state import TrainState
from greats_jax.training.step import TARGET_ONLY

_NOT_DROPPED = ("read", "kept", "truncated", "not_sampled")  # what is counted and is no loss


class Prepared(NamedTuple):
    """What a run works on."""

    model: Model
    tokenizer: Any
    data: TaskData
    facts: ExampleFacts
    optimizer: optax.GradientTransformation
    selecting: Selecting

    def started(self, config: TrainConfig, folder: Path, done: int) -> Started:
        """The event that opens a run, after so many updates of the one it goes on with."""
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
            done=done,
            trainable=trainable,
            total=trainable + fixed,
            pool=len(pool),
            sources=pool.sources,
            dropped={source: reasons for source, reasons in dropped.items() if reasons},
            validation=len(self.data.validation),
            test=len(self.data.test),
        )


def prepare(config: TrainConfig) -> Prepared:
    """Model and data, and the cheap checks that need them.

    Raises:
        GreatsError: A file, the model or the data cannot be used.
    """
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
    optimizer = build_optimizer(config.optimizer, schedule, config.accumulate)
    selecting = prepare_selecting(config, parts, tokenizer, schedule)
    return Prepared(parts, tokenizer, data, facts, optimizer, selecting)


def initial_state(config: TrainConfig, run: Prepared) -> TrainState:
    """The state before the first update, of the structure it has after every one."""
    directed = keeps_direction(needed(config), config.validation.mode, run.selecting.options.scoring)
    first_memory = None if config.method == TARGET_ONLY else get(config.method).init
    return TrainState.create(
        run.model.params,
        run.optimizer,
        seed=config.seed,
        reserve_direction=directed,
        memory=None if first_memory is None else first_memory(),
    )
