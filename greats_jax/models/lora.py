"""Low-rank adapters: adding them to a model and merging them into its weights."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from greats_jax.errors import ModelError
from greats_jax.models.config import LoraConfig, dtype_named
from greats_jax.models.decoder import Decoder
from greats_jax.models.layers import Linear, LowRank, dense
from greats_jax.models.partition import has_adapters

ALL_LINEAR = "all-linear"


def add_lora(model: Decoder, config: LoraConfig, key: jax.Array) -> Decoder:
    """Returns the model with adapters; their B is zero, so its outputs do not change yet.

    The given model is left alone and shares its arrays with the result. From here on only adapters are trainable
    (`partition`).

    Args:
      model: a model without adapters.
      config: rank, scale, dropout and targets.
      key: PRNG key for A.

    Raises:
      ModelError: if the model has adapters already, or a target is not one of its linear maps.
    """
    if has_adapters(model):
        raise ModelError("the model already has LoRA adapters: merge_lora(model) first, or start from the base model")
    model = copied(model)
    linears = linear_maps(model)
    targets = matched_targets(list(linears), config.targets)
    for index, (path, linear) in enumerate(linears.items()):
        if path not in targets:
            continue
        layers, d_in, d_out = linear.kernel.shape
        linear.lora = nnx.data(
            LowRank(
                d_in,
                d_out,
                layers=layers,
                rank=config.rank,
                alpha=config.alpha,
                rate=config.dropout,
                index=index,
                dtype=dtype_named(config.dtype),
                key=jax.random.fold_in(key, index),
            )
        )
    model.lora = dataclasses.replace(config, targets=tuple(sorted(_written_names(list(linears), targets))))
    return model


def merge_lora(model: Decoder) -> Decoder:
    """Returns a model without adapters whose weights are W + (alpha / rank) A B, the sum taken in float32.

    The given model is left alone. A model without adapters comes back as it is. A quantised W is turned back first,
    also where it has no adapter: the sum has more than the few values that its kind can hold.
    """
    model = copied(model)
    for linear in linear_maps(model).values():
        kernel = dense(linear.kernel[...])
        if linear.lora is None:
            linear.kernel = nnx.Param(kernel)
            continue
        a, b = (factor[...].astype(jnp.float32) for factor in (linear.lora.a, linear.lora.b))
        update = jnp.einsum("lir,lro->lio", a, b, precision=jax.lax.Precision.HIGHEST) * linear.lora.scale
        linear.kernel = nnx.Param((kernel.astype(jnp.float32) + update).astype(kernel.dtype))
        linear.lora = nnx.data(None)
    model.lora = None
    return model


def copied(model: Decoder) -> Decoder:
    """A second model object with the same arrays."""
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, nnx.to_pure_dict(state))


def linear_maps(model: Decoder) -> dict[str, Linear]:
    """The linear maps of the layers by their dotted path in a layer, as "self_attn.q_proj", in a fixed order."""
    found = {}
    for path, module in nnx.iter_modules(model.layers):
        if isinstance(module, Linear):
            found[".".join(map(str, path))] = module
    return dict(sorted(found.items()))


def matched_targets(paths: list[str], targets: tuple[str, ...]) -> set[str]:
    """The paths that PEFT's target names stand for.

    Raises:
      ModelError: if a name matches nothing.
    """
    matched: set[str] = set()
    for target in targets:
        hits = {path for path in paths if target == ALL_LINEAR or path == target or path.endswith("." + target)}
        if not hits:
            valid = sorted({path.rsplit(".", 1)[-1] for path in paths})
            raise ModelError(f"lora target {target!r} is not in this model: use {', '.join(valid)} or {ALL_LINEAR}")
        matched |= hits
    return matched


def _written_names(paths: list[str], targets: set[str]) -> set[str]:
    # The short name where it stands for nothing else, so that adapter_config.json reads as PEFT users know it.
    names = set()
    for path in targets:
        short = path.rsplit(".", 1)[-1]
        unique = all(other in targets for other in paths if other.endswith("." + short))
        names.add(short if unique else path)
    return names
