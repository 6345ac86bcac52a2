"""Contractions of labelled arrays: order chosen by FLOPs, memory bounded by slices, one-hot operands never expanded."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import opt_einsum
from jax import lax

Array = jax.Array
Labels = tuple[int, ...]

# A contraction is cut into slices when one intermediate would exceed this many bytes.
INTERMEDIATE_LIMIT = 2**27


class Spec(NamedTuple):
    """Labels of one operand; with `one_hot`, it holds integers that stand for one-hot vectors along that label."""

    labels: Labels
    one_hot: int | None = None

    @property
    def all_labels(self) -> Labels:
        """Labels including the class label of a one-hot operand."""
        return self.labels if self.one_hot is None else (*self.labels, self.one_hot)


class Tensor(NamedTuple):
    """An array with a label per axis."""

    array: Array
    spec: Spec


@dataclass(frozen=True)
class Sizes:
    """Size of every label, as a hashable mapping."""

    items: tuple[tuple[int, int], ...]

    def __getitem__(self, label: int) -> int:
        return dict(self.items)[label]

    def replacing(self, label: int, size: int) -> Sizes:
        """The same sizes but for one label."""
        return Sizes(tuple((k, size if k == label else v) for k, v in self.items))


@dataclass(frozen=True)
class Plan:
    """How an einsum will be computed."""

    flops: float
    peak_bytes: int
    slice_label: int | None = None
    slices: int = 1


def accumulation_dtype(arrays: Sequence[Array]) -> jnp.dtype:
    """float32, or float64 when an operand is."""
    return jnp.result_type(jnp.float32, *(a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.inexact)))


def contract(tensors: Sequence[Tensor], out: Labels, class_sizes: Mapping[int, int] | None = None) -> Array:
    """Sum of products over all labels not in `out`, accumulated in float32.

    The order is the cheapest in FLOPs; if an intermediate would exceed `INTERMEDIATE_LIMIT` the sum is taken slice by
    slice over the label for which that costs least.

    Args:
        tensors: labelled operands; a one-hot operand is resolved against the other operands by equality or gather.
        out: labels of the result, in order.
        class_sizes: size of the class label of one-hot operands whose class stays in the result.
    """
    sizes = sizes_of(tensors, class_sizes or {})
    plan = plan_contraction(tuple(t.spec for t in tensors), out, sizes)
    if plan.slice_label is None:
        return _contract_whole(tensors, out, sizes)
    label, count = plan.slice_label, plan.slices
    width = sizes[label] // count
    part_sizes = sizes.replacing(label, width)

    def part(i: Array) -> Array:
        return _contract_whole([take_slice(t, label, i * width, width) for t in tensors], out, part_sizes)

    if label in out:
        axis = out.index(label)
        parts = jnp.moveaxis(lax.map(part, jnp.arange(count)), 0, axis)
        shape = parts.shape
        return parts.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
    start = jnp.zeros([sizes[label] for label in out], accumulation_dtype([t.array for t in tensors]))
    return lax.fori_loop(0, count, lambda i, total: total + part(i), start)


def sizes_of(tensors: Sequence[Tensor], class_sizes: Mapping[int, int]) -> Sizes:
    """Label sizes read from array shapes; the class label of a one-hot operand from the operand it meets."""
    found = {label: size for t in tensors for label, size in zip(t.spec.labels, t.array.shape, strict=True)}
    # Two one-hot operands that meet only each other: their class label is summed by comparing ids, its size is unused.
    classes = {t.spec.one_hot: 1 for t in tensors if t.spec.one_hot is not None}
    return Sizes(tuple(sorted({**classes, **class_sizes, **found}.items())))


def take_slice(tensor: Tensor, label: int, start: Array, width: int) -> Tensor:
    """Part of an operand along a label; an operand without the label is returned as it is."""
    if label not in tensor.spec.labels:
        return tensor
    return tensor._replace(array=lax.dynamic_slice_in_dim(tensor.array, start, width, tensor.spec.labels.index(label)))


@functools.lru_cache(maxsize=4096)
def plan_contraction(specs: tuple[Spec, ...], out: Labels, sizes: Sizes) -> Plan:
    """Choose between computing at once and slicing one label; pure in static shapes."""
    flops, peak = _cost(specs, out, sizes)
    whole = Plan(flops, peak)
    if peak <= INTERMEDIATE_LIMIT:
        return whole
    options = []
    classes = {s.one_hot for s in specs}
    for label in {label for s in specs for label in s.labels} - classes:
        for count in _divisors(sizes[label]):
            flops, peak = _cost(specs, out, sizes.replacing(label, sizes[label] // count))
            if peak <= INTERMEDIATE_LIMIT or count == sizes[label]:
                options.append(Plan(flops * count, peak, label, count))
                break
    return min(options, key=lambda p: (max(p.peak_bytes, INTERMEDIATE_LIMIT), p.flops, p.slice_label), default=whole)


def _divisors(size: int) -> list[int]:
    return [d for d in range(2, size + 1) if size % d == 0]


def _cost(specs: tuple[Spec, ...], out: Labels, sizes: Sizes) -> tuple[float, int]:
    """FLOPs and largest intermediate in bytes (float32) of a contraction computed at once."""
    resolved, made = _resolve_labels(specs, out)
    result = math.prod(sizes[label] for label in out)
    path, info = _path(tuple(resolved), tuple(label for label in out if any(label in r for r in resolved)), sizes)
    peak = max([math.prod(sizes[label] for label in labels) for labels in made], default=0)
    if len(path) > 1:
        peak = max(peak, int(info.largest_intermediate))
    return float(info.opt_cost), 4 * max(0, peak if peak > result else 0)


def _equation(specs: tuple[Labels, ...], out: Labels) -> str:
    symbols = {label: opt_einsum.get_symbol(i) for i, label in enumerate(sorted({x for s in specs for x in s}))}
    return ",".join("".join(symbols[x] for x in s) for s in specs) + "->" + "".join(symbols[x] for x in out)


@functools.lru_cache(maxsize=16384)
def _path(specs: tuple[Labels, ...], out: Labels, sizes: Sizes) -> tuple[Any, opt_einsum.contract.PathInfo]:
    shapes = [tuple(sizes[x] for x in s) for s in specs]
    optimize = "optimal" if len(specs) <= 6 else "greedy"
    return opt_einsum.contract_path(_equation(specs, out), *shapes, shapes=True, optimize=optimize)


def intermediates(specs: tuple[Spec, ...], out: Labels, sizes: Sizes) -> list[tuple[frozenset[int], Labels]]:
    """What a contraction forms on its way: which of `specs` went into each array but the last, and its labels.

    A one-hot operand is met with the others first; the arrays made by that are not listed.
    """
    if any(s.one_hot is not None for s in specs):
        return []
    path, _ = _path(tuple(s.labels for s in specs), out, sizes)
    left = [(frozenset([i]), s.labels) for i, s in enumerate(specs)]
    made = []
    for step in path:
        picked = [left[i] for i in step]
        left = [x for i, x in enumerate(left) if i not in step]
        needed = {*out, *(label for _, labels in left for label in labels)}
        labels = dict.fromkeys(label for _, labels in picked for label in labels if label in needed)
        left.append((frozenset().union(*(members for members, _ in picked)), tuple(labels)))
        made.append(left[-1])
    return made[:-1]


def _contract_whole(tensors: Sequence[Tensor], out: Labels, sizes: Sizes) -> Array:
    dtype = accumulation_dtype([t.array for t in tensors])
    free = [t for t in tensors if t.spec.one_hot is not None and t.spec.one_hot in out]
    if free:
        return _scatter(free[0], [t for t in tensors if t is not free[0]], out, sizes, dtype)
    dense = _resolve(tensors, dtype)
    specs = tuple(t.spec.labels for t in dense)
    path, _ = _path(specs, out, sizes)
    arrays = [_runnable(t.array, dtype) for t in dense]
    return jnp.einsum(_equation(specs, out), *arrays, optimize=path, preferred_element_type=dtype)


def _runnable(array: Array, dtype: jnp.dtype) -> Array:
    """The array, widened on a CPU: XLA cannot run some products there that multiply bfloat16 into float32.

    Seen in jaxlib 0.10 and 0.12 (`dab,dc->cab`: "Unsupported element type for DotThunk").
    """
    return array.astype(dtype) if jax.default_backend() == "cpu" else array


# ---- one-hot operands ------------------------------------------------------------------------------------------------


def _resolve_labels(specs: Sequence[Spec], out: Labels) -> tuple[list[Labels], list[Labels]]:
    """Static twin of `_resolve`: labels after one-hot operands are gone, and labels of the arrays made on the way."""
    left, made = list(specs), []
    while True:
        found = next((s for s in left if s.one_hot is not None), None)
        if found is None:
            return [s.labels for s in left], made
        left.remove(found)
        met = [s for s in left if found.one_hot in s.all_labels]
        if not met:  # class label in the output: the result is scattered from the other operands
            left.append(Spec(found.labels))
        for other in met:
            left.remove(other)
            labels = tuple(dict.fromkeys((*(x for x in other.labels if x != found.one_hot), *found.labels)))
            made.append(labels)
            left.append(Spec(labels))


def _resolve(tensors: Sequence[Tensor], dtype: jnp.dtype) -> list[Tensor]:
    left = list(tensors)
    while True:
        ids = next((t for t in left if t.spec.one_hot is not None), None)
        if ids is None:
            return left
        left = [t for t in left if t is not ids]
        met = [t for t in left if ids.spec.one_hot in t.spec.all_labels]
        left = [t for t in left if not any(t is m for m in met)]
        for other in met:
            left.append(_equal(ids, other, dtype) if other.spec.one_hot is not None else _gather(ids, other))


def _equal(a: Tensor, b: Tensor, dtype: jnp.dtype) -> Tensor:
    """1 where two ids are the same; ids are non-negative, and negative where they address no row."""
    labels = tuple(dict.fromkeys((*a.spec.labels, *b.spec.labels)))
    left, right = (_spread(t.array, t.spec.labels, labels) for t in (a, b))
    return Tensor(((left == right) & (left >= 0)).astype(dtype), Spec(labels))


def _spread(array: Array, labels: Labels, target: Labels) -> Array:
    """Transpose to the order of `target` with axes of size 1 for absent labels."""
    order = [labels.index(x) for x in target if x in labels]
    return jnp.expand_dims(array.transpose(order), [i for i, x in enumerate(target) if x not in labels])


def _gather(ids: Tensor, other: Tensor) -> Tensor:
    """Pick, for each id, its entry of `other` along the class label; `other`, often logits, is not transposed."""
    left, at = list(other.spec.labels), list(ids.spec.labels)
    shared, places = [x for x in left if x in at], []
    for x in shared:
        places.append((left.index(x), at.index(x)))
        left.remove(x)
        at.remove(x)
    axis = next(i for i, x in enumerate(left) if x == ids.spec.one_hot)

    def take(rows: Array, index: Array) -> Array:
        # A negative index would count from the end.
        found = jnp.where(index < 0, rows.shape[axis], index)
        return jnp.take(rows, found, axis=axis, mode="fill", fill_value=0)

    for place in reversed(places):
        take = jax.vmap(take, in_axes=place)
    return Tensor(take(other.array, ids.array), Spec((*shared, *left[:axis], *at, *left[axis + 1 :])))


def _scatter(ids: Tensor, others: Sequence[Tensor], out: Labels, sizes: Sizes, dtype: jnp.dtype) -> Array:
    """Result that keeps the class label: sum rows into their class."""
    classes = ids.spec.all_labels[-1]
    common = [x for x in out if x in ids.spec.labels]
    rest = [x for x in out if x not in common and x != classes]
    summed = [x for x in ids.spec.labels if x not in common]
    rows_labels = (*common, *summed, *rest)
    present = {x for t in others for x in t.spec.all_labels}
    ones = [Tensor(jnp.ones([sizes[x]], dtype), Spec((x,))) for x in (*common, *summed) if x not in present]
    rows = contract([*others, *ones], rows_labels) if others or ones else jnp.ones((), dtype)
    index = ids.array.transpose([ids.spec.labels.index(x) for x in (*common, *summed)])
    tail = rows.shape[len(common) + len(summed) :]
    rows = rows.reshape(*rows.shape[: len(common)], -1, *tail)
    index = index.reshape(*index.shape[: len(common)], -1)

    def place(at: Array, values: Array) -> Array:
        size = sizes[classes]
        return (
            jnp.zeros((size, *values.shape[1:]), dtype)
            .at[jnp.where(at < 0, size, at)]
            .add(values.astype(dtype), mode="drop")
        )

    for _ in common:
        place = jax.vmap(place)
    placed = place(index, rows)
    current = (*common, classes, *rest)
    return placed.transpose([current.index(x) for x in out])
