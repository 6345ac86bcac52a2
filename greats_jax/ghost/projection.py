"""Random features of factored gradients: short vectors whose inner products estimate those of the gradients.

The map of a weight matrix is a Kronecker product of two random sign matrices, one for each side, so it is applied to
the factors and nothing of the size of the parameters is formed per example. Source: LoGra (Choe et al. 2024, arXiv
2405.13954), which lays the features of the leaves side by side; here they all add up in the same slots.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from greats_jax.errors import ArgumentError
from greats_jax.ghost.contractions import materialize
from greats_jax.ghost.einsum import Labels, Spec, Tensor, contract
from greats_jax.ghost.factored import Factored
from greats_jax.ghost.layout import EXAMPLE, LeafSpec

Array = jax.Array

# Labels of the projected sides: layouts count up from 0, and the second side of a product is -1.
_COLUMNS = (-2, -3)

# Random words come in blocks of this many, each block with a key of its own: one draw serves all leaves.
_BLOCK = 256


def features(leaves: Sequence[Factored], n: int, rank: int, key: Array, layer: Array | int | None = None) -> Array:
    """Sum over leaves of randomly projected gradients: f32[n, rank]. See `PerExampleGrads.project`.

    Raises:
        ArgumentError: the rank is not a positive integer.
    """
    if not isinstance(rank, (int, np.integer)) or rank < 1:
        raise ArgumentError(f"the rank of a projection is how many features it gives, an integer from 1 up: got {rank}")
    rank = int(rank)
    used = [leaf for leaf in leaves if leaf.spec.terms]
    maps = [plan_map(leaf.spec, rank, layer is not None) for leaf in used]
    parts = [
        _kronecker(leaf, n, rank, plan, words) if plan.sides else _scattered(leaf, n, rank, plan, words)
        for leaf, plan, words in zip(used, maps, _draw(key, maps, layer), strict=True)
    ]
    return sum(parts, start=jnp.zeros((n, rank), jnp.float32))


# ---- maps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One side of a Kronecker map.

    Attributes:
        labels: of the parameter axes on this side.
        shape: their sizes.
        width: columns of the sign matrix; None keeps the entries, each with a random sign.
    """

    labels: Labels
    shape: tuple[int, ...]
    width: int | None

    @property
    def signs(self) -> int:
        """How many random signs the side needs in each layer."""
        return math.prod(self.shape) * (self.width or 1)


@dataclass(frozen=True)
class LeafMap:
    """The shape of the random map of one leaf, in each of its layers.

    Attributes:
        path: key path of the leaf, which names its random stream.
        layers: how many layers are stacked in the leaf, each with a map of its own; 1 if they are not.
        stack: label of the layers, () if they are not stacked.
        size: entries in one layer.
        sides: the two sides; () if each entry goes to one slot.
        words: random words needed in each layer.
    """

    path: str
    layers: int
    stack: Labels
    size: int
    sides: tuple[Side, ...]
    words: int


def plan_map(spec: LeafSpec, rank: int, is_layer: bool) -> LeafMap:
    """Choose the map of a leaf. Only the path and the shape of the parameter decide, never how it was factored.

    So two batches of gradients of one parameter have comparable features, whatever their lengths. A vector, and a leaf
    with no more entries than slots, is added entry by entry to the slots. Else the axes are cut in two sides of like
    sizes; for the kernel of a dense layer, with head axes or without, these are its two factors.
    """
    stack = () if spec.stack is None or is_layer else (spec.stack,)
    layers, shape, splits = (spec.shape[0], spec.shape[1:], spec.splits[1:]) if stack else (1, spec.shape, spec.splits)
    size = math.prod(shape)
    if size <= rank or sum(length > 1 for length in shape) < 2:
        return LeafMap(spec.path, layers, stack, size, (), _words(size) + -(-size // rank))
    cut = min(range(1, len(shape)), key=lambda i: max(math.prod(shape[:i]), math.prod(shape[i:])))
    sizes, sides = dict(spec.sizes), []
    for axes, width in zip((splits[:cut], splits[cut:]), _widths(shape[:cut], shape[cut:], rank), strict=True):
        labels = tuple(x for axis in axes for x in axis)
        sides.append(Side(labels, tuple(sizes[x] for x in labels), width))
    return LeafMap(spec.path, layers, stack, size, tuple(sides), sum(_words(side.signs) for side in sides))


def _widths(left: Sequence[int], right: Sequence[int], rank: int) -> tuple[int | None, int | None]:
    """Columns for the two sides, about equal, with a product of at most `rank`; None for a side that is kept.

    The variance is about the sum of the inverse widths. A side smaller than its share leaves the rest to the other.
    """
    sizes = math.prod(left), math.prod(right)
    small = min(*sizes, math.isqrt(rank))
    large = min(max(sizes), rank // small)
    a, b = (small, large) if sizes[0] <= sizes[1] else (large, small)
    return None if a == sizes[0] else a, None if b == sizes[1] else b


def _words(signs: int) -> int:
    return -(-signs // 32)


def _draw(key: Array, maps: Sequence[LeafMap], layer: Array | int | None) -> list[Array]:
    """Random words of every leaf, u32[layers, words]: a function of the key, the leaf's path and the layer's number.

    All in one draw: generators are long programs, and one for each leaf took more compile time than all the rest.
    """
    blocks = [-(-m.words // _BLOCK) for m in maps]
    names, layers, numbers = [], [], []
    for m, count in zip(maps, blocks, strict=True):
        names.append(np.full(m.layers * count, zlib.crc32(m.path.encode()), np.uint32))
        layers.append(np.repeat(np.arange(m.layers, dtype=np.uint32), count))
        numbers.append(np.tile(np.arange(count, dtype=np.uint32), m.layers))
    if not names:
        return []
    # Not every kind of key gives under vmap what it gives alone; this kind does.
    seed = jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")
    at = jnp.asarray(np.concatenate(layers))

    def block(name: Array, layer: Array, number: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(seed, name), layer), number)
        return jax.random.bits(own, (_BLOCK,), jnp.uint32)

    at = at if layer is None else jnp.broadcast_to(jnp.asarray(layer, jnp.uint32), at.shape)
    drawn = jax.vmap(block)(jnp.asarray(np.concatenate(names)), at, jnp.asarray(np.concatenate(numbers)))
    ends = np.cumsum([m.layers * count for m, count in zip(maps, blocks, strict=True)])[:-1]
    return [part.reshape(m.layers, -1) for m, part in zip(maps, jnp.split(drawn, ends), strict=True)]


def _signs(words: Array, shape: tuple[int, ...]) -> Array:
    """Signs +1 and -1 from the bits of random words: u32[layers, words] -> i8[layers, *shape]."""
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    flat = (2 * bits.astype(jnp.int8) - 1).reshape(words.shape[0], -1)
    return flat[:, : math.prod(shape)].reshape(words.shape[0], *shape)


# ---- application -----------------------------------------------------------------------------------------------------


def _kronecker(leaf: Factored, n: int, rank: int, plan: LeafMap, words: Array) -> Array:
    maps, out, scale, start = [], [EXAMPLE], 1.0, 0
    for side, column in zip(plan.sides, _COLUMNS, strict=True):
        stop = start + _words(side.signs)
        shape, columns = (side.shape, ()) if side.width is None else ((*side.shape, side.width), (column,))
        signs = _signs(words[:, start:stop], shape)
        maps.append(Tensor(signs if plan.stack else signs[0], Spec((*plan.stack, *side.labels, *columns))))
        out.extend(columns or side.labels)
        scale, start = scale / math.sqrt(side.width or 1), stop
    parts = [
        contract(_project_operands(leaf.tensors(term), maps, plan), tuple(out)) * (scale * term.coefficient)
        for term in leaf.spec.terms or ()
    ]
    found = sum(parts[1:], start=parts[0]).reshape(n, -1)
    return jnp.pad(found, ((0, 0), (0, rank - found.shape[1])))


def _project_operands(tensors: Sequence[Tensor], maps: Sequence[Tensor], plan: LeafMap) -> list[Tensor]:
    """Apply to each operand the maps whose labels it alone holds; others (as of ids) are left for the contraction.

    One product for each operand, its labels in their order and the columns last: left to itself, XLA on a CPU moves the
    transposition of the small product to the operand, which made the whole five times slower.
    """
    left, done = dict(zip(plan.sides, maps, strict=True)), []
    for tensor in tensors:
        elsewhere = {x for other in tensors if other is not tensor for x in other.spec.all_labels}
        alone = set(tensor.spec.labels) - elsewhere
        own = [side for side in left if set(side.labels) <= alone and set(plan.stack) <= set(tensor.spec.labels)]
        if not own:
            done.append(tensor)
            continue
        summed = {x for side in own if side.width is not None for x in side.labels}
        signs = [left.pop(side) for side in own]
        columns = [x for m in signs for x in m.spec.labels if x in _COLUMNS]
        labels = (*(x for x in tensor.spec.labels if x not in summed), *columns)
        # Signs are exact in any floating dtype, and in the operand's the product keeps its speed.
        dtype = tensor.array.dtype if jnp.issubdtype(tensor.array.dtype, jnp.inexact) else jnp.float32
        typed = [m._replace(array=m.array.astype(dtype)) for m in signs]
        done.append(Tensor(contract([tensor, *typed], labels), Spec(labels)))
    return [*done, *left.values()]


def _scattered(leaf: Factored, n: int, rank: int, plan: LeafMap, words: Array) -> Array:
    """Whole gradients, each entry with a random sign in a slot; every run of `rank` entries starts at a random slot."""
    rows = materialize(leaf, n).reshape(n, plan.layers * plan.size)
    bits = _words(plan.size)
    entry = np.arange(plan.size)
    slots = (words[:, bits : plan.words] % rank)[:, entry // rank] + entry.astype(np.uint32)
    signs = _signs(words[:, :bits], (plan.size,)).reshape(-1)
    return jnp.zeros((n, rank), rows.dtype).at[:, (slots % rank).reshape(-1)].add(rows * signs)
