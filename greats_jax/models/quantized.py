"""Linear maps of a frozen base in 8 or 4 bits, under adapters that train (QLoRA: Dettmers et al., 2023).

The numbers are those of qwix (an optional dependency): a kernel becomes a `qwix.QArray`, a pytree of small integers and
of a scale for every `TILE` inputs of an output. It is turned back into a matrix where it is used, inside the scan over
layers, so that at no time more than one layer is there in full.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from greats_jax.errors import ModelError
from greats_jax.models.config import DecoderConfig
from greats_jax.models.decoder import Decoder
from greats_jax.models.lora import copied, linear_maps
from greats_jax.models.placing import Index, built

KINDS = ("int8", "int4", "nf4")
TILE = 64
"""Inputs that share a scale, as in QLoRA; fewer where the width is not a multiple of it."""


def quantised(model: Decoder, kind: str) -> Decoder:
    """The model with the kernels of its linear maps quantised; embeddings, head, norms and biases stay as they are.

    Args:
      model: a model without adapters, which is left alone.
      kind: "int8", "int4" (both uniform) or "nf4" (16 quantiles of a normal distribution).

    Raises:
      ModelError: if there is no such kind, or qwix is not installed.
    """
    model = copied(model)
    for linear in linear_maps(model).values():
        kernel = linear.kernel[...]
        linear.kernel = nnx.Param(quantise(kernel, kind, kernel.dtype))
    return model


def random_decoder(config: DecoderConfig, kind: str | None) -> Decoder:
    """A decoder with random weights, quantised if a kind is given; under `eval_shape`, the shapes of one."""
    model = Decoder(config, jax.random.key(0))
    return model if kind is None else quantised(model, kind)


def is_quantised(path: tuple[str, ...]) -> bool:
    """Whether the parameter at a path of a quantised model is."""
    return path[0] == "layers" and path[-1] == "kernel"


def has_quantised(model: Decoder) -> bool:
    """Whether any linear map is quantised."""
    return any(hasattr(linear.kernel[...], "qvalue") for linear in linear_maps(model).values())


def quantise(kernel: jax.Array, kind: str, dtype: Any) -> Any:
    """[L, d_in, d_out] as a `qwix.QArray`, whose scales (and what it is turned back into) have the given dtype.

    Raises:
      ModelError: if there is no such kind, or qwix is not installed.
    """
    if kind not in KINDS:
        raise ModelError(f"quantize {kind!r} is not supported: use one of {', '.join(KINDS)}")
    return _qwix().quantize(
        kernel.astype(jnp.float32), kind, channelwise_axes=(0, 2), tiled_axes={1: tile_of(kernel.shape)},
        scale_dtype=dtype,
    )  # fmt: skip


def tile_of(shape: tuple[int, ...]) -> int:
    """Inputs that share a scale in a kernel [..., d_in, d_out]."""
    return int(np.gcd(shape[-2], TILE))


def load_quantised(
    shape: tuple[int, ...], kind: str, dtype: Any, place: Any, read: Callable[[Index], np.ndarray]
) -> Any:
    """A kernel that is quantised while it is read, one layer of one shard at a time.

    Args:
      shape: [L, d_in, d_out].
      kind: as for `quantise`.
      dtype: as for `quantise`.
      place: a `qwix.QArray` of shardings; None for the default device.
      read: `read(index) -> block` of the kernel in float32.

    Returns:
      A `qwix.QArray`. What a shard shares its tiles with is read with it, and everything twice: for numbers and scales.
    """
    tile = tile_of(shape)
    whole = jax.eval_shape(lambda: quantise(jnp.zeros(shape), kind, dtype))

    def numbers(index: Index) -> np.ndarray:
        layers, inputs, outputs = index
        start = inputs.start // tile * tile
        wider = slice(start, -(-inputs.stop // tile) * tile)
        cut = slice(inputs.start - start, inputs.stop - start)
        return _joined([tiles((layer, wider, outputs)).qvalue[:, cut] for layer in _each(layers)])

    def scales(index: Index) -> np.ndarray:
        layers, groups, outputs = index
        inputs = slice(groups.start * tile, groups.stop * tile)
        return _joined([tiles((layer, inputs, outputs)).scale for layer in _each(layers)])

    def tiles(index: Index) -> Any:
        return quantise(jnp.asarray(read(index)), kind, dtype)

    values = built(whole.qvalue.shape, whole.qvalue.dtype, place and place.qvalue, numbers)
    return dataclasses.replace(
        whole, qvalue=values, scale=built(whole.scale.shape, dtype, place and place.scale, scales)
    )


def _each(layers: slice) -> list[slice]:
    return [slice(layer, layer + 1) for layer in range(layers.start, layers.stop)]


def _joined(blocks: list[jax.Array]) -> np.ndarray:
    return np.concatenate([np.asarray(block) for block in blocks])


def _qwix() -> ModuleType:
    try:
        import qwix
    except ImportError:
        raise ModelError("quantised models need qwix: pip install 'greats-jax[quantize]'") from None
    return qwix
