"""Everything a run works on, loaded and checked before anything is written."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from greats_jax.data import CandidateSampler, build_pool
from greats_jax.errors import ConfigError
from greats_jax.models import partition
from greats_jax.selection import get, in_groups
from greats_jax.training.config import TrainConfig
from greats_jax.training.events import Started
from greats_jax.training.example_facts import load_facts
from greats_jax.training.fingerprints import fingerprint_of_examples
from greats_jax.training.inputs import ExampleFacts
from greats_jax.training.mesh import make_mesh, place_decoder, row_parts
from greats_jax.training.optimizers import build_optimizer, build_schedule
from greats_jax.training.placement import Placement
from greats_jax.training.resolving import check_rows, groups_of, needed, total_steps
from greats_jax.training.scoring import keeps_direction
from greats_jax.training.selecting import Model, Selecting, prepare_selecting
from greats_jax.training.setup import TaskData, check_tokens, load_initial, load_tasks, tokenizer_of
from greats_jax.training.shelf import Shelf
from greats_jax.training.state import TrainState
from greats_jax.training.step import TARGET_ONLY

_NOT_DROPPED = ("read", "kept", "truncated", "not_sampled")  # what is counted and is no loss


class Prepared(NamedTuple):
    """What a run works on."""

    mesh: Mesh
    model: Model
    tokenizer: Any
    data: TaskData
    facts: ExampleFacts
    optimizer: optax.GradientTransformation
    selecting: Selecting
    pool: str  # fingerprint of all that was read, before the tasks took their examples from it

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


class ReadData(NamedTuple):
    """What a run reads beside its model."""

    tokenizer: Any
    data: TaskData
    pool: str


def read_data(config: TrainConfig, shelf: Shelf) -> ReadData:
    """Tokenizer, pool and tasks of a run.

    Args:
        config: The resolved configuration.
        shelf: Holds what was read before, and keeps this.

    Raises:
        GreatsError: A file cannot be used, or the pool cannot fill a batch.
    """
    text = config.model.tokenizer or config.model.source
    tokenizer = shelf.take("tokenizer", text, lambda: tokenizer_of(config.model))
    read = (text, config.data)
    pool = shelf.take("pool", read, lambda: build_pool(config.data, tokenizer))
    wanted = (*read, config.task, config.more_tasks, config.seed)
    data = shelf.take("data", wanted, lambda: load_tasks(config, tokenizer, pool))
    CandidateSampler(data.pool, config.batch, config.seed)  # refuses a pool that cannot fill a batch
    return ReadData(tokenizer, data, shelf.take("pool_hash", read, lambda: fingerprint_of_examples(pool.examples)))


def prepare(config: TrainConfig, shelf: Shelf) -> Prepared:
    """Model and data, and the cheap checks that need them.

    Args:
        config: The resolved configuration.
        shelf: Holds what runs before this one have read.

    Raises:
        GreatsError: A file, the model or the data cannot be used.
    """
    mesh = make_mesh(config.mesh)
    check_rows(config, row_parts(mesh))
    # Data first: a mistake there should not cost the time to load a large model.
    tokenizer, data, pool = read_data(config, shelf)
    model = load_initial(config, mesh, shelf)
    check_tokens(data, model.config.max_length, model.config.vocab_size)
    upper = config.scoring.upper_layers
    if upper is not None and upper >= model.config.layers:
        raise ConfigError(
            f"scoring.upper_layers is {upper}, but the model has {model.config.layers} layers: give fewer, or null"
        )
    facts = load_facts(config, data, tokenizer)
    parts = Model(model.config, *partition(model))
    schedule = build_schedule(config.optimizer, total_steps(config, len(data.pool)))
    optimizer = build_optimizer(config.optimizer, schedule, config.accumulate)
    selecting = prepare_selecting(config, parts, tokenizer, schedule, mesh)
    return Prepared(mesh, parts, tokenizer, data, facts, optimizer, selecting, pool)


def initial_state(config: TrainConfig, run: Prepared) -> tuple[TrainState, Placement]:
    """The state before the first update, of the structure it has after every one, and where it lives."""
    directed = keeps_direction(needed(config), config.validation.mode, run.selecting.options.scoring)
    groups = groups_of(config, row_parts(run.mesh))
    rule = None if config.method == TARGET_ONLY else in_groups(get(config.method), groups)

    def create(params: Any) -> TrainState:
        memory = None if rule is None or rule.init is None else rule.init()
        return TrainState.create(params, run.optimizer, seed=config.seed, reserve_direction=directed, memory=memory)

    shapes = jax.eval_shape(create, run.model.params)
    placement = place_decoder(run.mesh, run.model.architecture, shapes, run.model.frozen)
    # They are there already; a second model that the rule compares with is cut as its own shape asks.
    placement = dataclasses.replace(placement, frozen=jax.tree.map(lambda x: x.sharding, run.selecting.frozen))
    state = jax.jit(create, out_shardings=placement.state)(run.model.params)
    for copied in jax.tree.leaves(run.model.params):
        copied.delete()  # nobody reads the values again, and they are as large as what trains
    return state, placement
