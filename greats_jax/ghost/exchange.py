"""What contractions send between the devices that hold different examples, in FLOPs that take as long.

All numbers are sums over devices, as those of FLOPs are, and 0 where examples are not spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from greats_jax.ghost.einsum import Labels, Tensor
from greats_jax.ghost.factored import Factored
from greats_jax.ghost.layout import EXAMPLE, TermSpec
from greats_jax.ghost.spread import Spread

# FLOPs that take as long as receiving a byte from another device, roughly, on NVLink or a TPU's links. A mesh of CPUs
# stands for one of those.
FLOPS_PER_BYTE = 2000.0


def received_for_pairs(leaf: Factored) -> float:
    """Of gathering a leaf's factors on every device."""
    if leaf.spread is None:
        return 0.0
    return FLOPS_PER_BYTE * _of_gathering(leaf.spread) * _bytes(leaf, leaf.spec.terms or ())


def received_for_sum(leaf: Factored) -> float:
    """Of adding up a weighted sum, of which each device has a part: an all-reduce sends it about twice."""
    return 0.0 if leaf.spread is None else FLOPS_PER_BYTE * 8.0 * (leaf.spread.parts - 1) * leaf.spec.size


def received_for_products(leaf: Factored, rest: Sequence[tuple[TermSpec, TermSpec]]) -> float:
    """Of giving each device a slice of the products of all examples, and of gathering the factors of other pairs.

    Args:
        leaf: the terms whose products are formed.
        rest: pairs of terms that are contracted without.
    """
    if leaf.spread is None:
        return 0.0
    spec = leaf.spec
    terms, sizes = [leaf.tensors(term) for term in spec.terms or ()], dict(spec.sizes)
    turned = min(_of_turning(terms, sizes, spec.out, leaf.spread), _of_slicing(terms, sizes, spec.out, leaf.spread))
    gathered = _of_gathering(leaf.spread) * _bytes(leaf, [term for pair in rest for term in pair])
    return FLOPS_PER_BYTE * (turned + gathered)


def sliced_terms(
    terms: Sequence[Sequence[Tensor]], out: Labels, sizes: Mapping[int, int], spread: Spread
) -> Sequence[Sequence[Tensor]] | None:
    """The factors from which each device forms a slice of the products of all examples.

    The factor that has the sliced axis is sliced, and the others are whole; None where it takes fewer bytes to send the
    products themselves.
    """
    sizes = {**sizes, **{label: size for term in terms for t in term for label, size in _axes(t)}}
    if _of_turning(terms, sizes, out, spread) <= _of_slicing(terms, sizes, out, spread):
        return None
    label = sliced_label(out, sizes, spread)

    def place(tensor: Tensor) -> Tensor:
        labels = tensor.spec.labels
        example = labels.index(EXAMPLE) if EXAMPLE in labels else None
        axis = labels.index(label) if label in labels else None
        return tensor._replace(array=spread.sliced(tensor.array, example, axis))

    return [[place(tensor) for tensor in term] for term in terms]


def sliced_label(out: Labels, sizes: Mapping[int, int], spread: Spread) -> int:
    """The axis of a parameter along which devices divide it; there must be one."""
    axis = spread.axis_of(tuple(sizes[label] for label in out))
    assert axis is not None
    return out[axis]


def _of_turning(terms: Sequence[Sequence[Tensor]], sizes: Mapping[int, int], out: Labels, spread: Spread) -> float:
    """Bytes of an all-to-all of the products."""
    size = 4.0 * next(size for term in terms for t in term for label, size in _axes(t) if label == EXAMPLE)
    for label in out:
        size *= sizes[label]
    return size * (spread.parts - 1) / spread.parts


def _of_slicing(terms: Sequence[Sequence[Tensor]], sizes: Mapping[int, int], out: Labels, spread: Spread) -> float:
    """Bytes of an all-to-all of the factors that have the sliced axis, and of gathering the others."""
    label, total = sliced_label(out, sizes, spread), 0.0
    for tensor in {id(t.array): t for term in terms for t in term}.values():
        if EXAMPLE in tensor.spec.labels:
            sliced = label in tensor.spec.labels
            times = (spread.parts - 1) / spread.parts if sliced else _of_gathering(spread)
            total += tensor.array.size * tensor.array.dtype.itemsize * times
    return total


def _of_gathering(spread: Spread) -> int:
    """How often the bytes of an array are received when every device gets all of it."""
    return (spread.parts - 1) * spread.copies


def _axes(tensor: Tensor) -> list[tuple[int, int]]:
    return list(zip(tensor.spec.labels, tensor.array.shape, strict=True))


def _bytes(leaf: Factored, terms: Sequence[TermSpec]) -> float:
    used = {i for term in terms for i, spec in term.operands if EXAMPLE in spec.labels}
    return float(sum(leaf.pool[i].size * leaf.pool[i].dtype.itemsize for i in used))
