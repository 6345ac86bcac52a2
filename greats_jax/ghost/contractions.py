"""Contractions of one factored leaf: inner products, norms, directions and weighted sums, each one bounded einsum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from greats_jax.errors import ArgumentError
from greats_jax.ghost.einsum import (
    Labels,
    Plan,
    Spec,
    Tensor,
    contract,
    plan_contraction,
    sizes_of,
    take_slice,
)
from greats_jax.ghost.exchange import (
    received_for_pairs,
    received_for_products,
    received_for_sum,
    sliced_label,
    sliced_terms,
)
from greats_jax.ghost.factored import OTHER, Factored, as_other, cut_alike, drop_rows, weigh_rows
from greats_jax.ghost.layout import EXAMPLE, TermSpec

Array = jax.Array
PyTree = Any

# Per-example products are formed in slices of this many bytes. On a CPU a slice that is read again at once should still
# be in cache; on an accelerator small slices are many small kernels (GPT-2 on an H200: exact GREATS 3.7 times the plain
# step with 16 MiB, 1.9 times with 256 MiB).
INSTANCE_LIMIT = 2**24
_ON_ACCELERATORS = 16

# FLOPs that take as long as moving a byte, roughly: what decides between forms that cost alike in FLOPs. On an H200 the
# products of an 8B-shaped model's examples took longer to write than to compute.
FLOPS_PER_BYTE = {"cpu": 5.0, "accelerator": 150.0}


def gram(leaf: Factored, keep: Labels = ()) -> Array | None:
    """`<g_i, g_j>` of one leaf, `[*keep, n, n]`; None if the gradient is always zero."""
    if not leaf.spec.terms:
        return None
    if gram_plan(leaf)[0] != "instantiate":
        return _pair_sum(leaf, _pairs(leaf), keep)
    products, pairs = _formed(leaf)
    own = fold_products(products, lambda product: _product_gram(product, products, keep), keep)
    return own + _pair_sum(leaf, pairs, keep) if pairs else own


def cross(leaf: Factored, other: Factored, keep: Labels = ()) -> Array | None:
    """`<g_i, h_j>` of one leaf, `[*keep, n, m]`."""
    leaf, other = cut_alike(leaf, other)
    parts = []
    for a in leaf.spec.terms or ():
        for b in other.spec.terms or ():
            right = as_other(other, other.tensors(b), leaf.spec)
            parts.append(
                contract([*leaf.tensors(a), *right], (*keep, EXAMPLE, OTHER)) * (a.coefficient * b.coefficient)
            )
    return sum(parts[1:], start=parts[0]) if parts else None


def squared_norms(leaf: Factored, keep: Labels = ()) -> Array | None:
    """`<g_i, g_i>` of one leaf, `[*keep, n]`."""
    terms = leaf.spec.terms or ()
    parts = []
    for i, a in enumerate(terms):
        for j, b in enumerate(terms[i:]):
            right = as_other(leaf, leaf.tensors(b), example=EXAMPLE)
            parts.append(
                contract([*leaf.tensors(a), *right], (*keep, EXAMPLE))
                * (a.coefficient * b.coefficient * (1 if j == 0 else 2))
            )
    return sum(parts[1:], start=parts[0]) if parts else None


def dot(leaf: Factored, direction: Array, keep: Labels = ()) -> Array | None:
    """`<g_i, v>` of one leaf, `[*keep, n]`, for a direction of the parameter's shape."""
    target = _direction(leaf, direction)
    parts = [contract([*leaf.tensors(t), target], (*keep, EXAMPLE)) * t.coefficient for t in leaf.spec.terms or ()]
    return sum(parts[1:], start=parts[0]) if parts else None


def weighted_sum(leaf: Factored, weights: Array, n: int | None = None) -> Array:
    """`sum_i w_i g_i` of one leaf, with weights `[n]` or `[layers, n]`; rows of weight 0 are never read.

    Raises:
        ArgumentError: the weights have another shape, where n is given.
    """
    spec = leaf.spec
    layered = spec.stack is not None and weights.shape == (spec.shape[0], n)
    if n is not None and weights.shape != (n,) and not layered:
        stacked = f" or ({spec.shape[0]}, {n})" if spec.stack is not None else ""
        raise ArgumentError(
            f"the weights of {spec.path or 'the leaf'} have shape {weights.shape}; they must have ({n},){stacked}"
        )
    labels = (EXAMPLE,) if weights.ndim == 1 else (*spec.out[:1], EXAMPLE)
    sizes = dict(spec.sizes)
    parts = []
    for term in spec.terms or ():
        tensors = [drop_rows(t, weights, labels) for t in leaf.tensors(term)]
        parts.append(contract(weigh_rows(tensors, weights, labels), spec.out, sizes) * term.coefficient)
    return sum(parts[1:], start=parts[0]).reshape(spec.shape) if parts else jnp.zeros(spec.shape, jnp.float32)


def materialize(leaf: Factored, n: int) -> Array:
    """`g_i` of one leaf, `[n, *shape]`: the whole per-example gradient, for tests and small leaves."""
    spec = leaf.spec
    parts = [
        contract(leaf.tensors(t), (EXAMPLE, *spec.out), dict(spec.sizes)) * t.coefficient for t in spec.terms or ()
    ]
    return sum(parts[1:], start=parts[0]).reshape(n, *spec.shape) if parts else jnp.zeros((n, *spec.shape), jnp.float32)


def align_with(leaf: Factored, other: Factored, weights: Array) -> Array | None:
    """`<g_i, sum_j w_j h_j>` of one leaf, `[n]`: by the summed direction or by pairs, whichever costs less."""
    if not leaf.spec.terms or not other.spec.terms:
        return None
    if _sum_cost(other) + _sum_flops(leaf) <= _pair_cost(leaf, other):
        return dot(leaf, weighted_sum(other, weights))
    table = cross(leaf, other)
    return None if table is None else _weigh(table, weights)


def gram_and_dot(leaf: Factored, direction: Array) -> tuple[Array, Array] | None:
    """`(gram(leaf), dot(leaf, direction))`; where per-example products are formed, both are taken from them."""
    if not leaf.spec.terms:
        return None
    if gram_plan(leaf)[0] != "instantiate":
        own, aligned = gram(leaf), dot(leaf, direction)
        return None if own is None or aligned is None else (own, aligned)
    products, pairs = _formed(leaf)

    def both(product: Tensor, part: Tensor) -> tuple[Array, Array]:
        return _product_gram(product, products, ()), product.array.reshape(len(product.array), -1) @ part.array.ravel()

    own, aligned = fold_products(products, both, (), _direction(leaf, direction))
    if not pairs:
        return own, aligned
    looked_up = dot(_with_terms(leaf, [t for t in leaf.spec.terms if _looks_up(t)]), direction)
    assert looked_up is not None
    return own + _pair_sum(leaf, pairs, ()), aligned + looked_up


def gram_and_alignment(ours: Factored, theirs: Factored, weights: Array) -> tuple[Array, Array] | None:
    """`(gram(ours), align_with(ours, theirs, weights))` of one leaf, by pairs or through the summed direction."""
    if not ours.spec.terms or not theirs.spec.terms:
        return None
    by_products = gram_plan(ours)[0] == "instantiate"
    through = _sum_cost(theirs) + (0.0 if by_products else _sum_flops(ours))
    if through <= _pair_cost(ours, theirs):
        return gram_and_dot(ours, weighted_sum(theirs, weights))
    own, table = gram(ours), cross(ours, theirs)
    return None if own is None or table is None else (own, _weigh(table, weights))


def _direction(leaf: Factored, direction: Array) -> Tensor:
    """A direction of the leaf, labelled, in the dtype of the leaf's factors.

    A float32 direction would turn the products with bfloat16 factors into float32 ones, at half their speed or less;
    its rounding is that of the gradients themselves.
    """
    floats = {leaf.pool[i].dtype for t in leaf.spec.terms or () for i, spec in t.operands if spec.one_hot is None}
    dtype = jnp.result_type(*floats) if floats else direction.dtype
    return Tensor(direction.reshape(leaf.spec.atom_shape).astype(dtype), Spec(leaf.spec.out))


def _weigh(table: Array, weights: Array) -> Array:
    # A dropped validation row may hold anything, also a value that is not finite.
    return jnp.where(weights == 0, 0, table) @ weights.astype(table.dtype)


# ---- pairs -----------------------------------------------------------------------------------------------------------


def gram_plan(leaf: Factored) -> tuple[str, Plan]:
    """How the Gram of a leaf is computed, by the smaller number of FLOPs and, on a mesh, of exchanged bytes.

    `whole`: from arrays that are stored per example; `ghost`: token by token from the factors, those of one side
    gathered; `instantiate`: one product per example, formed slice by slice, each device taking a slice for all.
    """
    terms, spread = leaf.spec.terms or (), leaf.spread
    products, rest = _formed(leaf)
    ghost = _pairs_plan(leaf, _pairs(leaf))
    stored = all(len(term.operands) == 1 and not _looks_up(term) for term in terms)
    if stored and spread is None:
        return "whole", ghost
    if not products.spec.terms or (spread is not None and spread.axis_of(leaf.spec.atom_shape) is None):
        return "whole" if stored else "ghost", ghost
    n = _rows(leaf)
    flops = _sum_flops(products) + 2.0 * n * n * leaf.spec.size + (_pairs_plan(leaf, rest).flops if rest else 0.0)
    # What is written is read once more: products of examples, or the two tables of all pairs of tokens.
    balance = FLOPS_PER_BYTE["cpu" if jax.default_backend() == "cpu" else "accelerator"]
    instantiated = flops + balance * 8 * n * leaf.spec.size + received_for_products(products, rest)
    by_pairs = ghost.flops + balance * 4 * ghost.peak_bytes * ghost.slices
    if instantiated >= by_pairs + received_for_pairs(leaf):
        return "ghost", ghost
    slices = math.prod(count for _, count in _instance_cuts(products, n))
    return "instantiate", Plan(flops, 4 * n * leaf.spec.size // slices, None, slices)


Pair = tuple[TermSpec, TermSpec]


def _looks_up(term: TermSpec) -> bool:
    return any(spec.one_hot is not None for _, spec in term.operands)


def _with_terms(leaf: Factored, terms: Sequence[TermSpec]) -> Factored:
    return leaf._replace(spec=replace(leaf.spec, terms=tuple(terms)))


def _pairs(leaf: Factored) -> list[Pair]:
    terms = leaf.spec.terms or ()
    return [(a, b) for i, a in enumerate(terms) for b in terms[i:]]


def _formed(leaf: Factored) -> tuple[Factored, list[Pair]]:
    """The terms whose products can be formed, and the pairs with others, which go token by token.

    Lookups would have to be scattered into every slice of a product: on two cores that took a tied table of 8,192 rows
    from 0.20 s to 0.53 s.
    """
    products = _with_terms(leaf, [term for term in leaf.spec.terms or () if not _looks_up(term)])
    if leaf.spread is not None and any(len(term.operands) > 1 for term in products.spec.terms or ()):
        products = products._replace(spread=leaf.spread.shared())
    return products, [(a, b) for a, b in _pairs(leaf) if _looks_up(a) or _looks_up(b)]


def _pair_sum(leaf: Factored, pairs: Sequence[Pair], keep: Labels) -> Array:
    parts = []
    for a, b in pairs:
        mixed = contract([*leaf.tensors(a), *as_other(leaf, leaf.tensors(b))], (*keep, EXAMPLE, OTHER))
        mixed *= a.coefficient * b.coefficient
        parts.append(mixed if a is b else mixed + jnp.swapaxes(mixed, -1, -2))
    return sum(parts[1:], start=parts[0])


def _pairs_plan(leaf: Factored, pairs: Sequence[Pair]) -> Plan:
    plans, leaf = [], leaf._replace(spread=None)  # only shapes are looked at
    for a, b in pairs:
        both = [*leaf.tensors(a), *as_other(leaf, leaf.tensors(b))]
        plans.append(plan_contraction(tuple(t.spec for t in both), (EXAMPLE, OTHER), sizes_of(both, {})))
    return Plan(sum(p.flops for p in plans), max(p.peak_bytes for p in plans), None, max(p.slices for p in plans))


# ---- products of one example, slice by slice -------------------------------------------------------------------------


def fold_products(leaf: Factored, use: Callable[..., PyTree], keep: Labels = (), *others: Tensor) -> PyTree:
    """Sum of `use(g, *others)` over slices of the leaf, `g` being the per-example gradient in that slice.

    Args:
        leaf: a leaf with terms.
        use: from a slice of `[n, *out]` (and the same slice of `others`) to arrays that add up over slices.
        keep: labels that are not cut.
        others: tensors labelled like the parameter, cut along.

    Returns:
        What `use` returns, summed. A slice has at most `INSTANCE_LIMIT` bytes where the leaf can be cut that far.
    """
    cuts = [(label, count) for label, count in _instance_cuts(leaf, _rows(leaf)) if label not in keep]
    by_layer = [cut for cut in cuts if cut[0] == leaf.spec.stack]
    within = [cut for cut in cuts if cut[0] != leaf.spec.stack]
    return _fold(leaf, [leaf.tensors(t) for t in leaf.spec.terms or ()], use, others, by_layer, within)


def _fold(
    leaf: Factored,
    terms: Sequence[Sequence[Tensor]],
    use: Callable[..., PyTree],
    others: Sequence[Tensor],
    cuts: Sequence[tuple[int, int]],
    then: Sequence[tuple[int, int]] | None = None,
) -> PyTree:
    """Fold over slices along `cuts`, then along `then`; before these, what devices have to send each other is sent."""
    if not cuts and then is not None:
        if leaf.spread is None:
            return _fold(leaf, terms, use, others, then)
        rows, sliced = leaf.spread.rows, sliced_terms(terms, leaf.spec.out, dict(leaf.spec.sizes), leaf.spread)
        if sliced is not None:
            return _fold(leaf, sliced, use, others, then)

        def turn(product: Tensor, *rest: Tensor) -> PyTree:
            # Unless it is said that products are formed where their rows are, factors are gathered to form them.
            return use(product._replace(array=rows(product.array)), *rest)

        return _fold(leaf, terms, turn, others, then)
    if not cuts:
        rows = (EXAMPLE, *leaf.spec.out)
        coefficients = [t.coefficient for t in leaf.spec.terms or ()]
        parts = [contract(t, rows, dict(leaf.spec.sizes)) * c for t, c in zip(terms, coefficients, strict=True)]
        return use(Tensor(sum(parts[1:], start=parts[0]), Spec(rows)), *others)
    (label, count), rest = cuts[0], cuts[1:]
    width = dict(leaf.spec.sizes)[label] // count

    def part(i: Array) -> PyTree:
        cut = [[take_slice(t, label, i * width, width) for t in term] for term in terms]
        return _fold(leaf, cut, use, [take_slice(t, label, i * width, width) for t in others], rest, then)

    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, jnp.zeros((), jnp.int32)))
    return lax.fori_loop(0, count, lambda i, total: jax.tree.map(jnp.add, total, part(i)), start)


def _product_gram(product: Tensor, leaf: Factored, keep: Labels) -> Array:
    if keep:
        return contract([product, *as_other(leaf, [product])], (*keep, EXAMPLE, OTHER))
    # As one matrix product; an einsum over all axes took twice as long on a CPU.
    array, spread = product.array, leaf.spread
    flat = array.reshape(len(array), -1) if spread is None else spread.flat(array)
    return flat @ flat.T


def _instance_cuts(leaf: Factored, n: int) -> list[tuple[int, int]]:
    """Labels and numbers of slices, layers first, until the products of all examples fit `INSTANCE_LIMIT`."""
    limit = INSTANCE_LIMIT * (1 if jax.default_backend() == "cpu" else _ON_ACCELERATORS)
    parts = 1 if leaf.spread is None else leaf.spread.parts
    need = math.ceil(4 * n * leaf.spec.size / parts / limit)
    cuts, sizes = [], leaf.spec.sizes
    if leaf.spread is not None and leaf.spread.axis_of(leaf.spec.atom_shape) is not None:
        # Slices along the axis that devices divide would have to be gathered.
        divided = sliced_label(leaf.spec.out, dict(sizes), leaf.spread)
        sizes = [pair for pair in sizes if pair[0] != divided]
    for label, size in sizes:
        if need <= 1:
            break
        count = next((d for d in range(need, size + 1) if size % d == 0), size)
        cuts.append((label, count))
        need = math.ceil(need / count)
    return cuts


# ---- planning --------------------------------------------------------------------------------------------------------


def _rows(leaf: Factored) -> int:
    for term in leaf.spec.terms or ():
        for tensor in leaf.tensors(term):
            if EXAMPLE in tensor.spec.labels:
                return tensor.array.shape[tensor.spec.labels.index(EXAMPLE)]
    return 0


def _flops(leaf: Factored, term: TermSpec, out: Labels) -> float:
    tensors = leaf.tensors(term)
    sizes = sizes_of(tensors, dict(leaf.spec.sizes))
    return plan_contraction(tuple(t.spec for t in tensors), out, sizes).flops


def _pair_flops(leaf: Factored, other: Factored) -> float:
    leaf, other = cut_alike(leaf._replace(spread=None), other._replace(spread=None))
    total = 0.0
    for a in leaf.spec.terms or ():
        for b in other.spec.terms or ():
            both = [*leaf.tensors(a), *as_other(other, other.tensors(b), leaf.spec)]
            total += plan_contraction(tuple(t.spec for t in both), (EXAMPLE, OTHER), sizes_of(both, {})).flops
    return total


def _pair_cost(leaf: Factored, other: Factored) -> float:
    """FLOPs of all pairs of the examples of two leaves, and of receiving those of the other."""
    return _pair_flops(leaf, other) + received_for_pairs(other)


def _sum_cost(leaf: Factored) -> float:
    """FLOPs of a weighted sum, and of adding up the devices' parts of it (sent and received once in an all-reduce)."""
    return _sum_flops(leaf) + received_for_sum(leaf)


def _sum_flops(leaf: Factored) -> float:
    """Of one product of the leaf per example: what a weighted sum, a direction or the products themselves cost."""
    return sum(_flops(leaf, term, leaf.spec.out) for term in leaf.spec.terms or ())
