"""The frozen model of RHO-Loss, beside the model that is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from greats_jax.errors import ConfigError
from greats_jax.models import combine, load_tokenizer, partition
from greats_jax.training.config import TrainConfig
from greats_jax.training.inputs import fact
from greats_jax.training.losses import LanguageExample, language_model_loss
from greats_jax.training.setup import load_placed
from greats_jax.training.signals import RowSignal

Array = jax.Array
PyTree = Any
LossFn = Callable[..., Any]


class Reference(NamedTuple):
    """How a step gets losses under a frozen model.

    Attributes:
        weights: What joins the frozen pytree of the step; None if nothing has to.
        losses: The row signal, from the frozen pytree of the step and a candidate.
    """

    weights: PyTree
    losses: RowSignal


def load_reference(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, loss_fn: LossFn, params: PyTree, mesh: Mesh | None = None
) -> Reference:
    """The reference that the configuration names: a table of losses, a second model, or the model without adapters.

    Args:
        config: A resolved configuration.
        tokenizer: Of the model that is trained.
        loss_fn: Of the model that is trained.
        params: Its trainable parameters, which are its adapters where no model and no table is named.
        mesh: The devices that a second model goes to.

    Raises:
        ConfigError: The second model splits text into other tokens.
        ModelError: It cannot be found or read.
    """
    reference = config.reference
    if reference.losses is not None:
        return Reference(None, fact("reference_losses"))
    if reference.model is None:
        # Adapters of zero add nothing to the model.
        shapes = jax.eval_shape(lambda: params)

        def of_base(frozen: PyTree, row: LanguageExample) -> Array:
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return loss_fn(nothing, frozen["model"], _quiet(row))

        return Reference(None, of_base)
    if load_tokenizer(reference.model).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"reference.model {reference.model} has another tokenizer than model.source {config.model.source}: losses "
            "over other tokens cannot be compared; choose a model of the same family"
        )
    whole = dataclasses.replace(config.model, remat="none", quantize=None, weights="pretrained")
    model = load_placed(whole, reference.model, mesh)
    graphdef, weights, rest = partition(model)
    second = language_model_loss(graphdef, combine)

    def of_second(frozen: PyTree, row: LanguageExample) -> Array:
        weights, rest = frozen["reference"]
        return second(weights, rest, _quiet(row))

    return Reference((weights, rest), of_second)


def _quiet(row: LanguageExample) -> LanguageExample:
    """The row without dropout."""
    return row._replace(deterministic=jnp.ones_like(row.deterministic))
