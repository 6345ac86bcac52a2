"""Splitting a model into what trains and what does not, as plain nested dicts of arrays."""

from typing import Any

import jax
from flax import nnx

from greats_jax.errors import ModelError
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


def cut_layers(tree: dict[str, Any], at: int, tied: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cuts the arrays of a decoder in two: what the first `at` layers need, and what the others and the head need.

    Args:
      tree: parameters or frozen arrays, as from `partition`.
      at: number of layers in the lower part.
      tied: whether the token table is also the head; then both parts hold it.

    Returns:
      Two trees of the structure of `tree`, which `combine` accepts; an array that a part does not need is cut down to
      length 0. Linear in the arrays, so that its transpose puts gradients together again. Cost: a copy of the layers.

    Raises:
      ModelError: there is no layer on one side of the cut.
    """
    layers = {len(x) for x in jax.tree.leaves(tree.get("layers", ()))}
    if any(not 0 < at < count for count in layers):
        raise ModelError(f"a cut after layer {at} leaves one part without layers: the model has {max(layers)}")
    in_both = {"embed"} if tied else set()
    below = {"embed", "positions"}

    def part(lower: bool) -> dict[str, Any]:
        def cut(path: tuple, x: Any) -> Any:
            name = path[0].key
            if name == "layers":
                return x[:at] if lower else x[at:]
            return x if name in in_both or (name in below) == lower else x[:0]

        return jax.tree_util.tree_map_with_path(cut, tree)

    return part(True), part(False)
