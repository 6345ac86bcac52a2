"""From a configuration and a model to what a selective step, or a table of scores, is made of."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from greats_jax.models import DecoderConfig, combine, cut_layers
from greats_jax.training.config import ScoringConfig, TrainConfig
from greats_jax.training.inputs import fact, source_of, targets_of
from greats_jax.training.losses import (
    has_labels,
    language_model_loss,
    split_language_model_loss,
    summarised_language_model_loss,
)
from greats_jax.training.optimizers import build_preconditioner
from greats_jax.training.references import load_reference
from greats_jax.training.resolving import needed
from greats_jax.training.scoring import Projection, Scoring
from greats_jax.training.signals import RowSignal, SignalOptions
from greats_jax.training.split_loss import SplitLoss

PyTree = Any
LossFn = Callable[..., Any]


class Model(NamedTuple):
    """A decoder in parts, as `models.partition` gives them."""

    architecture: DecoderConfig
    graphdef: Any
    params: PyTree
    frozen: PyTree


class Selecting(NamedTuple):
    """What the method of a configuration asks of the model.

    Attributes:
        loss_fn: The loss that candidates are scored by and learned from.
        frozen: Its frozen pytree: that of the model, and of what it is compared with.
        options: How signals are computed.
    """

    loss_fn: LossFn
    frozen: PyTree
    options: SignalOptions


def prepare_selecting(
    config: TrainConfig,
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    schedule: optax.Schedule,
    mesh: Mesh | None = None,
) -> Selecting:
    """The loss, its frozen arrays and the options of the configuration's method.

    Raises:
        GreatsError: The model that the method compares with cannot be used.
    """
    needs = needed(config)
    dropout = config.lora is not None and config.lora.dropout > 0
    summarised = "logit_summaries" in needs
    plain = language_model_loss(model.graphdef, combine, dropout=dropout)
    loss_fn: LossFn = plain
    if summarised:
        loss_fn = summarised_language_model_loss(model.graphdef, combine, dropout=dropout)
    elif config.scoring.upper_layers is not None:
        loss_fn = _cut_loss(config.scoring.upper_layers, model, dropout)
    frozen = model.frozen
    rows: dict[str, RowSignal] = {"sources": source_of, "embeddings": fact("embeddings")}
    if "reference_losses" in needs:
        reference = load_reference(config, tokenizer, plain, model.params, mesh)
        rows["reference_losses"] = reference.losses
        frozen = {"model": model.frozen, "reference": reference.weights}
        loss_fn = _of_model(loss_fn)
    options = SignalOptions(
        config.validation.mode,
        config.validation.refresh_every,
        lambda batches: schedule(jnp.asarray(batches) // config.accumulate),
        has_labels,
        summarised,
        _scoring(config.scoring),
        rows,
        targets_of(config),
        build_preconditioner(config.optimizer, schedule, config.accumulate),
    )
    return Selecting(loss_fn, frozen, options)


def _cut_loss(upper: int, model: Model, dropout: bool) -> SplitLoss:
    """The loss cut below the layers that score."""
    at = model.architecture.layers - upper
    cut = functools.partial(cut_layers, at=at, tied=model.architecture.tied)
    return split_language_model_loss(model.graphdef, combine, cut, at, dropout=dropout)


def _of_model(loss_fn: LossFn) -> LossFn:
    """The loss where the frozen pytree holds more than the model's own arrays."""
    if isinstance(loss_fn, SplitLoss):
        trunk, head, split = loss_fn
        return SplitLoss(
            lambda lower, frozen, row: trunk(lower, frozen["model"], row),
            lambda upper, frozen, x, row: head(upper, frozen["model"], x, row),
            split,
        )
    return lambda params, frozen, row: loss_fn(params, frozen["model"], row)


def _scoring(config: ScoringConfig) -> Scoring:
    """The step's options as the configuration spells them."""
    projection = None if config.projection is None else Projection(config.projection, config.alignment)
    pattern = None if config.leaves is None else re.compile(config.leaves)
    leaves = None if pattern is None else lambda path: pattern.search(path) is not None
    return Scoring(config.passes, config.micro_batches, leaves, projection)
