"""What a family has to say about itself."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from greats_jax.errors import ModelError
from greats_jax.models.config import DecoderConfig


class Weight(NamedTuple):
    """Where one parameter lives here and in a Hugging Face checkpoint.

    Attributes:
      path: keys in the parameter dict; below "layers" the array is stacked, [L, ...].
      name: checkpoint name, with {} for the layer index.
      transposed: whether the checkpoint holds the transpose of our matrix ([d_out, d_in], as torch's Linear).
    """

    path: tuple[str, ...]
    name: str
    transposed: bool = False


Axes = tuple[str | None, ...]
"""Logical axes of one array, without the axis of stacked layers; None for an axis that is never cut."""


class Family(NamedTuple):
    """One architecture.

    Attributes:
      name: `model_type` in config.json.
      architecture: name of the transformers class, written when saving.
      config_class: name of the transformers config class; it reads files of transformers 4 and 5 alike.
      block: module of one layer, called as `block(config, key)`.
      read: config of transformers -> ours.
      write: ours -> keyword arguments of the transformers config class.
      weights: every parameter of a model of this family.
      optional_prefix: checkpoints may leave out this first part of a name.
      ignored: endings of checkpoint names that hold no parameter (buffers that old versions saved).
      axes: logical axes of every table and of the kernel of every linear map, by its name or the end of it; what is
        not named is small and never cut. `models.sharding` says which mesh axis cuts which logical axis.
    """

    name: str
    architecture: str
    config_class: str
    block: Callable[..., nnx.Module]
    read: Callable[[Any], DecoderConfig]
    write: Callable[[DecoderConfig], dict[str, Any]]
    weights: Callable[[DecoderConfig], tuple[Weight, ...]]
    optional_prefix: str
    ignored: tuple[str, ...]
    axes: Mapping[str, Axes]


ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def activation_named(name: str) -> str:
    """Our name of a Hugging Face activation.

    Raises:
      ModelError: if it is not supported.
    """
    if name not in ACTIVATION_NAMES:
        raise ModelError(f"config.json: activation {name!r} is not supported: use one of {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[name]


def token_ids(value: int | list[int] | tuple[int, ...] | None) -> tuple[int, ...]:
    """eos_token_id of a config, which may be one id, several or none."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def written_token_ids(config: DecoderConfig) -> dict[str, Any]:
    """The special tokens as keyword arguments of a transformers config."""
    eos = config.eos_token_ids
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": (eos[0] if len(eos) == 1 else list(eos)) if eos else None,
        "pad_token_id": config.pad_token_id,
    }
