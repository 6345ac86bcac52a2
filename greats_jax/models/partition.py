"""Splitting a model into what trains and what does not, as plain nested dicts of arrays."""

from typing import Any

from flax import nnx

from greats_jax.models.decoder import Decoder
from greats_jax.models.layers import LoraParam


def has_adapters(model: Decoder) -> bool:
    """Whether any linear map carries a low-rank adapter."""
    return bool(nnx.to_pure_dict(nnx.state(model, LoraParam)))


def partition(model: Decoder) -> tuple[nnx.GraphDef, dict[str, Any], dict[str, Any]]:
    """Splits a model into its static structure, its trainable parameters and the rest.

    Returns:
      `(graphdef, params, frozen)`. graphdef is hashable and static under jit; params is a nested dict of arrays, only
      the adapters if there are any, otherwise every weight; frozen is a nested dict of the other arrays, {} when
      everything trains. Pass frozen as an argument of a jitted step, never by closure: closed-over arrays become
      constants of the compiled program.
    """
    if has_adapters(model):
        graphdef, params, frozen = nnx.split(model, LoraParam, ...)
        return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(frozen)
    graphdef, params = nnx.split(model)
    return graphdef, nnx.to_pure_dict(params), {}


def combine(graphdef: nnx.GraphDef, params: dict[str, Any], frozen: dict[str, Any]) -> Decoder:
    """The inverse of `partition`; cheap, and usable inside jit, grad, vmap, scan and checkpoint."""
    return nnx.merge(graphdef, params, frozen, copy=True)
