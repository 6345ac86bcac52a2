"""One factored leaf with its arrays, and what its rows and axes can be made into before they are contracted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from greats_jax.ghost.einsum import Labels, Spec, Tensor
from greats_jax.ghost.layout import EXAMPLE, LeafSpec, TermSpec, finest_splits, split_sizes
from greats_jax.ghost.spread import Spread

Array = jax.Array

# The second set of examples in a cross product; contraction-only labels of the second side are shifted out of the way.
OTHER = -1
_SHIFT = 10_000


class Factored(NamedTuple):
    """One leaf with its arrays: the einsum terms of `spec` over `pool`, their examples perhaps spread over a mesh."""

    spec: LeafSpec
    pool: tuple[Array, ...]
    spread: Spread | None = None

    def tensors(self, term: TermSpec) -> list[Tensor]:
        """Labelled operands of a term."""
        return [Tensor(self.pool[i], spec) for i, spec in term.operands]


def as_other(
    leaf: Factored, tensors: Sequence[Tensor], match: LeafSpec | None = None, example: int = OTHER
) -> list[Tensor]:
    """Relabel the second side of a product: parameter axes keep (or take `match`'s) labels, the rest is renamed.

    Where examples are spread over devices and are to meet all others, the second side is gathered.
    """
    if leaf.spread is not None and example == OTHER:
        tensors = [_gathered(t, leaf.spread) for t in tensors]
    table = dict(zip(leaf.spec.out, (match or leaf.spec).out, strict=True))
    table[EXAMPLE] = example

    def rename(label: int) -> int:
        return table.get(label, label + _SHIFT)

    def respec(spec: Spec) -> Spec:
        return Spec(tuple(rename(x) for x in spec.labels), None if spec.one_hot is None else rename(spec.one_hot))

    return [t._replace(spec=respec(t.spec)) for t in tensors]


def _gathered(tensor: Tensor, spread: Spread) -> Tensor:
    if EXAMPLE not in tensor.spec.labels:
        return tensor
    return tensor._replace(array=spread.whole(tensor.array, tensor.spec.labels.index(EXAMPLE)))


def drop_rows(tensor: Tensor, weights: Array, labels: Labels) -> Tensor:
    """Zero what belongs to weight 0, so that a value that is not finite cannot reach the sum."""
    if tensor.spec.one_hot is not None or EXAMPLE not in tensor.spec.labels:
        return tensor
    unused = weights == 0
    if weights.ndim == 2 and labels[0] not in tensor.spec.labels:
        unused, labels = unused.all(axis=0), labels[1:]
    order = [labels.index(x) for x in tensor.spec.labels if x in labels]
    spread = jnp.expand_dims(unused.transpose(order), [i for i, x in enumerate(tensor.spec.labels) if x not in labels])
    return tensor._replace(array=jnp.where(spread, 0, tensor.array))


def weigh_rows(tensors: Sequence[Tensor], weights: Array, labels: Labels) -> list[Tensor]:
    """Operands and the weights of the rows; of 16-bit operands one takes them in, so that products stay 16-bit."""
    for place, tensor in enumerate(tensors):
        narrow = tensor.spec.one_hot is None and tensor.array.dtype.itemsize < 4
        if narrow and set(labels) <= set(tensor.spec.labels):
            order = [labels.index(x) for x in tensor.spec.labels if x in labels]
            absent = [i for i, x in enumerate(tensor.spec.labels) if x not in labels]
            scaled = tensor.array * jnp.expand_dims(weights.transpose(order), absent)
            return [
                *tensors[:place], tensor._replace(array=scaled.astype(tensor.array.dtype)), *tensors[place + 1 :]
            ]  # fmt: skip
    return [*tensors, Tensor(weights, Spec(labels))]


def cut_alike(a: Factored, b: Factored) -> tuple[Factored, Factored]:
    """Both leaves with their parameter axes cut into the same labels."""
    if split_sizes(a.spec) == split_sizes(b.spec):
        return a, b
    target = finest_splits(a.spec, b.spec)
    return _recut(a, target), _recut(b, target)


def _recut(leaf: Factored, target: tuple[tuple[int, ...], ...]) -> Factored:
    """Cut parameter labels further, reshaping the operands that carry them."""
    sizes, fresh = dict(leaf.spec.sizes), _SHIFT // 2
    table: dict[int, tuple[tuple[int, int], ...]] = {}
    splits = []
    for axis, parts in zip(leaf.spec.splits, target, strict=True):
        remaining, labels = list(parts), []
        for label in axis:
            pieces, product = [], 1
            while product < sizes[label]:
                product *= remaining[0]
                pieces.append((fresh, remaining.pop(0)))
                fresh += 1
            table[label] = tuple(pieces) if len(pieces) > 1 else ((label, sizes[label]),)
            labels += [piece for piece, _ in table[label]]
        splits.append(tuple(labels))
    pool: list[Array] = []
    terms = []
    for term in leaf.spec.terms or ():
        operands = []
        for tensor in leaf.tensors(term):
            labels = [
                p
                for x in tensor.spec.labels
                for p in table.get(x, ((x, tensor.array.shape[tensor.spec.labels.index(x)]),))
            ]
            operands.append((len(pool), Spec(tuple(x for x, _ in labels), tensor.spec.one_hot)))
            pool.append(tensor.array.reshape([size for _, size in labels]))
        terms.append(TermSpec(tuple(operands), term.coefficient))
    new_sizes = tuple(pair for label, _ in leaf.spec.sizes for pair in table[label])
    spec = replace(leaf.spec, splits=tuple(splits), sizes=new_sizes, terms=tuple(terms))
    return Factored(spec, tuple(pool), leaf.spread)
