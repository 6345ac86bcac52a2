"""A configured step and its arguments as shapes alone: what can be known of a run before a weight or record is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from greats_jax.data import LanguageBatch
from greats_jax.models import Decoder, DecoderConfig, add_lora, partition
from greats_jax.models.quantized import random_decoder
from greats_jax.training.config import TrainConfig
from greats_jax.training.configured_step import configured_step
from greats_jax.training.losses import LanguageExample, language_rows
from greats_jax.training.optimizers import build_optimizer, build_schedule
from greats_jax.training.placement import Placement
from greats_jax.training.resolving import needed
from greats_jax.training.scoring import GUIDED, keeps_direction
from greats_jax.training.selecting import Model, Selecting, prepare_selecting
from greats_jax.training.state import TrainState
from greats_jax.training.step import TARGET_ONLY

PyTree = Any

_EMBEDDING = 384  # features of a sentence, as of the encoder that sbert uses by default


class AbstractRun(NamedTuple):
    """A step and its arguments, arrays of which are `jax.ShapeDtypeStruct`s.

    Attributes:
        step: The step.
        state: Training state.
        frozen: What the step does not change.
        candidates: Rows to choose from.
        validation: Rows that steer the choice; None for a rule that looks at none.
        selecting: The loss, and how signals are computed.
        vocabulary: Tokens that the model knows.
    """

    step: Callable[..., Any]
    state: TrainState
    frozen: PyTree
    candidates: LanguageExample
    validation: LanguageExample | None
    selecting: Selecting
    vocabulary: int

    @property
    def arguments(self) -> tuple[PyTree, ...]:
        """Of the step."""
        return self.state, self.frozen, self.candidates, self.validation


def abstract_model(config: TrainConfig, shape: DecoderConfig, mesh: Mesh | None = None) -> Model:
    """The model that a run of this configuration starts from, with its adapters, as shapes.

    Args:
        config: The run.
        shape: Of the model.
        mesh: Where its arrays are going to be; None for one device.
    """

    def build() -> Decoder:
        model = random_decoder(shape, config.model.quantize)
        model.mesh = mesh
        return model if config.lora is None else add_lora(model, config.lora, jax.random.key(0))

    return Model(shape, *partition(nnx.eval_shape(build)))


def abstract_run(
    config: TrainConfig,
    model: Model,
    placement: Callable[[TrainState, PyTree], Placement] | None = None,
    length: int | None = None,
) -> AbstractRun:
    """The step of a configuration on the longest rows it can meet.

    A second reference model is left out: its losses stand in for it.

    Args:
        config: A resolved configuration.
        model: Of `abstract_model`.
        placement: From the shapes of state and frozen arrays to where they live on a mesh; None for one device.
        length: Tokens of a row; None for as many as the configuration and the model allow.
    """
    if config.reference.model is not None:
        config = dataclasses.replace(config, reference=dataclasses.replace(config.reference, model=None, losses="-"))
    schedule = build_schedule(config.optimizer, config.steps or 1)
    optimizer = build_optimizer(config.optimizer, schedule, config.accumulate)
    # A tokenizer is only compared with that of a reference model.
    selecting = prepare_selecting(config, model, cast(PreTrainedTokenizerBase, None), schedule)
    directed = keeps_direction(needed(config), config.validation.mode, selecting.options.scoring)
    state = jax.eval_shape(
        lambda params: TrainState.create(params, optimizer, reserve_direction=directed), model.params
    )
    placed = None if placement is None else placement(state, selecting.frozen)
    step = configured_step(config, selecting, optimizer, config.method, placed)
    length = length or min(config.data.max_length, model.architecture.max_length)
    guided = config.method == TARGET_ONLY or bool(needed(config) & GUIDED)
    candidates, validation = (_rows(config, count, length) for count in (config.batch, validation_rows(config)))
    return AbstractRun(
        step,
        state,
        selecting.frozen,
        candidates,
        validation if guided else None,
        selecting,
        model.architecture.vocab_size,
    )


def validation_rows(config: TrainConfig) -> int:
    """How many validation examples a step sees, at most."""
    per_step, tasks = config.validation.per_step, (config.task, *config.more_tasks)
    if config.validation.source == "recent":
        return per_step or config.batch * config.validation.window
    there_are = sum(task.n_validation for task in tasks)
    return min(per_step or there_are, there_are)


def _rows(config: TrainConfig, count: int, length: int) -> LanguageExample:
    flags = np.zeros((count, length), bool)
    known = {
        "sources": np.zeros(count, np.int32),
        "reference_losses": np.zeros(count, np.float32),
        "embeddings": np.zeros((count, _EMBEDDING), np.float32),
    }
    needs = needed(config)
    extras = {name: x for name, x in known.items() if name in needs} | {"task": np.zeros(count, np.int32)}
    batch = LanguageBatch(np.zeros((count, length), np.int32), flags, flags)
    return jax.eval_shape(lambda: language_rows(batch, extras=extras))
