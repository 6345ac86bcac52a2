"""`PerExampleGrads`: per-example gradients kept as factors, with the contractions that selection needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from greats_jax.errors import ArgumentError
from greats_jax.ghost import contractions as c
from greats_jax.ghost.einsum import Spec
from greats_jax.ghost.explanation import Explanation, explain_leaf
from greats_jax.ghost.factored import Factored
from greats_jax.ghost.layers import LayerContractions
from greats_jax.ghost.layout import EXAMPLE, LeafSpec, TermSpec
from greats_jax.ghost.projection import features
from greats_jax.ghost.spread import Spread

Array = jax.Array
PyTree = Any


@jax.tree_util.register_pytree_with_keys_class
@dataclass(frozen=True)
class PerExampleGrads:
    """The gradients `g_1 .. g_n` of n examples, a linear operator that is never written out.

    A registered pytree: it passes through `jit`, `scan` and sharding. Contractions accumulate in float32 (float64 for
    float64 operands). Cost of each contraction: see `explain()`.

    Attributes:
        operands: the stored factors; one array may serve several parameter leaves.
        leaves: per parameter leaf, which operands it is made of.
        treedef: structure of the parameters.
        n: number of examples.
        spread: how examples are spread over a mesh, if `over` was told so.
    """

    operands: tuple[Array, ...]
    leaves: tuple[LeafSpec, ...]
    treedef: Any
    n: int
    spread: Spread | None = None

    def tree_flatten_with_keys(self) -> tuple[list, tuple]:
        """Children are the stored factors."""
        keyed = [(jax.tree_util.SequenceKey(i), a) for i, a in enumerate(self.operands)]
        return keyed, (self.leaves, self.treedef, self.n, self.spread)

    @classmethod
    def tree_unflatten(cls, aux: tuple, children: Any) -> PerExampleGrads:
        """Inverse of flattening."""
        return cls(tuple(children), *aux)

    def _factored(self) -> list[Factored]:
        return [Factored(spec, self.operands, self.spread) for spec in self.leaves]

    def _total(self, parts: list[Array | None], shape: tuple[int, ...]) -> Array:
        present = [p for p in parts if p is not None]
        total = sum(present[1:], start=present[0]) if present else jnp.zeros(shape, jnp.float32)
        return total if self.spread is None else self.spread.everywhere(total)

    def gram(self) -> Array:
        """Inner products of all pairs, `<g_i, g_j>`: f32[n, n].

        On a mesh (`over`) each leaf exchanges what costs less: the factors of all examples, or per-example products
        turned from cut by example to cut by parameter.
        """
        return self._total([c.gram(leaf) for leaf in self._factored()], (self.n, self.n))

    def gram_blocks(self, groups: int) -> Array:
        """Inner products within each of `groups` runs of b = n / groups examples: f32[groups, b, b].

        Nothing crosses from one run to another, so none of it leaves a device that holds whole runs.

        Raises:
            ArgumentError: n is not a multiple of `groups`.
        """
        if self.n % groups:
            raise ArgumentError(f"{self.n} examples cannot be cut into {groups} equal groups")
        axes, size = self._example_axes(), self.n // groups
        cut = [
            a.reshape(*a.shape[: axes[i]], groups, size, *a.shape[axes[i] + 1 :]) if i in axes else a
            for i, a in enumerate(self.operands)
        ]
        if self.spread is not None and groups % self.spread.parts == 0:
            cut = [self.spread.rows(a, axes[i]) if i in axes else a for i, a in enumerate(cut)]

        def block(*operands: Array) -> Array:
            return replace(self, operands=operands, n=size, spread=None).gram()

        blocks = jax.vmap(block, in_axes=tuple(axes.get(i) for i in range(len(cut))))(*cut)
        return blocks if self.spread is None else self.spread.everywhere(blocks)

    def cross(self, other: PerExampleGrads) -> Array:
        """Inner products with the gradients of other examples of the same parameters: f32[n, m].

        Raises:
            ArgumentError: `other` belongs to parameters of another structure or shape.
        """
        self._check_same_parameters(other)
        pairs = zip(self._factored(), other._factored(), strict=True)
        return self._total([c.cross(a, b) for a, b in pairs], (self.n, other.n))

    def squared_norms(self) -> Array:
        """Squared Euclidean norms `<g_i, g_i>`: f32[n]."""
        return self._total([c.squared_norms(leaf) for leaf in self._factored()], (self.n,))

    def dot(self, direction: PyTree) -> Array:
        """Inner products with one direction, a pytree like the parameters: f32[n].

        Leaves of the direction that meet an integer or boolean parameter are ignored.

        Raises:
            ArgumentError: the direction has another structure or shape than the parameters.
        """
        values = self._match(direction, "direction")
        return self._total([c.dot(leaf, v) for leaf, v in zip(self._factored(), values, strict=True)], (self.n,))

    def dot_by_leaf(self, direction: PyTree) -> PyTree:
        """The terms of `dot(direction)`: a pytree like the parameters of f32[n], f32[layers, n] for a stacked leaf.

        Integer and boolean parameters get None.

        Raises:
            ArgumentError: the direction has another structure or shape than the parameters.
        """

        def part(leaf: Factored, value: Array) -> Array | None:
            spec = leaf.spec
            if spec.terms is None:
                return None
            keep = () if spec.stack is None else (spec.stack,)
            found = c.dot(leaf, value, keep)
            return jnp.zeros((*(spec.shape[:1] if keep else ()), self.n)) if found is None else found

        values = self._match(direction, "direction")
        return jax.tree.unflatten(self.treedef, [part(*p) for p in zip(self._factored(), values, strict=True)])

    def like(self, direction: PyTree) -> PerExampleGrads:
        """One example whose gradient is the given direction, of the same parameters: for `project` and `cross`.

        Raises:
            ArgumentError: the direction has another structure or shape than the parameters.
        """
        values = self._match(direction, "direction")
        operands, leaves = [], []
        for spec, value in zip(self.leaves, values, strict=True):
            if spec.terms:
                labels = Spec((EXAMPLE, *spec.out))
                leaves.append(replace(spec, terms=(TermSpec(((len(operands), labels),), 1.0),), kind="direction"))
                operands.append(value.reshape(1, *spec.atom_shape))
            else:
                leaves.append(spec)
        return PerExampleGrads(tuple(operands), tuple(leaves), self.treedef, 1)

    def align(self, other: PerExampleGrads, weights: Array) -> Array:
        """`<g_i, sum_j w_j h_j>`: f32[n], through the summed direction or all pairs, whichever costs fewer FLOPs.

        A row of `other` with weight 0 contributes exactly 0, even when it is not finite.
        """
        self._check_same_parameters(other)
        pairs = zip(self._factored(), other._factored(), strict=True)
        return self._total([c.align_with(a, b, weights) for a, b in pairs], (self.n,))

    def gram_and_alignment(self, other: PerExampleGrads, weights: Array) -> tuple[Array, Array]:
        """`(gram(), align(other, weights))`, both signals of GREATS: f32[n, n] and f32[n].

        Leaf by leaf one contraction gives both where that costs less.

        Args:
            other: gradients of the validation rows.
            weights: f32[m] of them; a row of weight 0 contributes exactly 0.
        """
        self._check_same_parameters(other)
        parts = zip(self._factored(), other._factored(), strict=True)
        return self._both([c.gram_and_alignment(ours, theirs, weights) for ours, theirs in parts])

    def gram_and_dot(self, direction: PyTree) -> tuple[Array, Array]:
        """`gram()` and `dot(direction)`, f32[n, n] and f32[n]; a per-example product that has to be formed serves both.

        Raises:
            ArgumentError: the direction has another structure or shape than the parameters.
        """
        values = self._match(direction, "direction")
        return self._both([c.gram_and_dot(leaf, v) for leaf, v in zip(self._factored(), values, strict=True)])

    def _both(self, pairs: list[tuple[Array, Array] | None]) -> tuple[Array, Array]:
        grams, products = (
            zip(*(p for p in pairs if p is not None), strict=True) if any(p is not None for p in pairs) else ((), ())
        )
        return self._total(list(grams), (self.n, self.n)), self._total(list(products), (self.n,))

    def project(self, rank: int, key: Array, layer: Array | int | None = None) -> Array:
        """Random features whose inner products estimate those of the gradients without bias: f32[n, rank].

        For features f of this and h of other gradients of the same parameters, with the same rank and key, the mean of
        `<f_i, h_j>` over keys is `<g_i, h_j>`; its standard deviation is about `|g_i| |h_j| / sqrt(rank)`. The features
        are linear in the gradient, however it is factored: those of a part of the parameters add up to those of all.
        The sides of a matrix are multiplied by random signs (LoGra, Choe et al. 2024, arXiv 2405.13954); leaves, and
        layers of a stacked leaf, have independent signs and share the features.

        Cost of a dense leaf with factors [n, t, p] and [n, t, q]: about `2 n t (p + q + sqrt(rank)) sqrt(rank)` FLOPs,
        against `2 n t p q` of its forward pass. Nothing larger than a factor or a `[p, sqrt(rank)]` is formed.

        Args:
            rank: number of features.
            key: PRNG key, traced or not. The same key gives the same map.
            layer: number of the layer (i32, traced or not) when the parameters are one layer's slices of leaves that
                are stacked elsewhere: the features of all slices add up to those of the stacked leaves.

        Raises:
            ArgumentError: the rank is not a positive integer.
        """
        return features(self._factored(), self.n, rank, key, layer)

    def weighted_sum(self, weights: Array | PyTree, dtype: Any = None) -> PyTree:
        """`sum_i w_i g_i`, a pytree like the parameters, each leaf in its parameter's dtype (or in `dtype`).

        Args:
            weights: f32[n], or a pytree like the parameters of f32[n] (f32[layers, n] for a stacked leaf). A row of
                weight 0 contributes exactly 0, even when its gradient is not finite.
            dtype: dtype of the result's floating leaves.

        Returns:
            The sum; integer and boolean parameters get zeros, so that adding the result leaves them unchanged.
        """
        if isinstance(weights, jax.Array) or not jax.tree_util.treedef_is_leaf(jax.tree.structure(weights)):
            values = (
                [weights] * len(self.leaves)
                if isinstance(weights, jax.Array)
                else self._match(weights, "weights", shapes=False)
            )
        else:
            values = [jnp.asarray(weights)] * len(self.leaves)
        sums = []
        for leaf, w in zip(self._factored(), values, strict=True):
            own = jnp.dtype(leaf.spec.dtype)
            if leaf.spec.terms is None:
                sums.append(jnp.zeros(leaf.spec.shape, own))
            else:
                sums.append(c.weighted_sum(leaf, jnp.asarray(w), self.n).astype(dtype or own))
        return jax.tree.unflatten(self.treedef, sums)

    def finite(self) -> Array:
        """Which examples have only finite factors: bool[n]. One pass over the stored factors."""
        result = jnp.ones(self.n, bool)
        for position, axis in self._example_axes().items():
            array = self.operands[position]
            if jnp.issubdtype(array.dtype, jnp.inexact):
                result &= jnp.isfinite(array).all(axis=tuple(i for i in range(array.ndim) if i != axis))
        return result

    def _example_axes(self) -> dict[int, int]:
        """Where each operand that depends on the example carries the example axis."""
        used = [pair for leaf in self.leaves for term in leaf.terms or () for pair in term.operands]
        return {position: spec.labels.index(EXAMPLE) for position, spec in used if EXAMPLE in spec.labels}

    def materialize(self) -> PyTree:
        """The per-example gradients themselves, a pytree of `[n, ...]`: the reference, for tests and small leaves."""
        whole = [c.materialize(leaf, self.n) for leaf in self._factored()]
        return jax.tree.unflatten(self.treedef, whole)

    def __len__(self) -> int:
        """Number of examples."""
        return self.n

    def __getitem__(self, indices: Any) -> PerExampleGrads:
        """The gradients of a subset: a slice or an integer array, traced or not; negative indices count from the end.

        An index out of range gives gradients that are NaN, as `jnp.take` does: traced code cannot raise.
        """
        rows = jnp.arange(self.n)[indices] if isinstance(indices, slice) else jnp.asarray(indices)
        rows = jnp.where(rows < 0, rows + self.n, rows)
        if rows.ndim != 1:
            raise ArgumentError(
                f"PerExampleGrads is indexed by a slice or a 1-d integer array; found shape {rows.shape}"
            )
        axes = self._example_axes()

        def take(position: int, array: Array) -> Array:
            if position not in axes:
                return array
            if isinstance(indices, slice):
                key = [slice(None)] * array.ndim
                key[axes[position]] = indices
                return array[tuple(key)]
            return jnp.take(array, rows, axis=axes[position], mode="fill")

        kept = tuple(take(i, a) for i, a in enumerate(self.operands))
        return replace(self, operands=kept, n=rows.shape[0])

    def over(self, spread: Spread | None) -> PerExampleGrads:
        """The same gradients, with their examples spread over devices, if they can be cut evenly; None leaves them.

        Contractions then say what is exchanged between devices, instead of leaving it to the compiler.
        """
        if spread is None or self.n % spread.parts:
            return self
        axes = self._example_axes()
        placed = tuple(spread.rows(a, axes[i]) if i in axes else a for i, a in enumerate(self.operands))
        return replace(self, operands=placed, spread=spread)

    def split(self, first: int, parts: int = 1) -> tuple[PerExampleGrads, PerExampleGrads]:
        """Two groups of examples that are dealt to `parts` equal runs: the first ones of each run, and the others.

        Args:
            first: size of the first group; a multiple of `parts`.
            parts: number of runs.
        """
        axes = self._example_axes()
        head = first // parts

        def part(begin: int, end: int) -> PerExampleGrads:
            def take(i: int, array: Array) -> Array:
                if i not in axes:
                    return array
                axis = axes[i]
                runs = array.reshape(*array.shape[:axis], parts, -1, *array.shape[axis + 1 :])
                taken = jax.lax.slice_in_dim(runs, begin, end, axis=axis + 1)
                return taken.reshape(*array.shape[:axis], parts * (end - begin), *array.shape[axis + 1 :])

            taken = tuple(map(take, range(len(self.operands)), self.operands))
            return replace(self, operands=taken, n=parts * (end - begin), spread=None).over(self.spread)

        return part(0, head), part(head, self.n // parts)

    def only(self, leaves: Callable[[str], bool]) -> PerExampleGrads:
        """The same gradients with every other leaf taken as zero, to contract a part of the parameters.

        Args:
            leaves: `leaves(path) -> bool`, by key path such as `"['head']['kernel']"`.

        Raises:
            ArgumentError: no leaf is chosen.
        """
        chosen = [spec.terms is not None and leaves(spec.path) for spec in self.leaves]
        if not any(chosen):
            raise ArgumentError(f"no parameter is chosen: the leaves are {', '.join(s.path for s in self.leaves)}")
        specs = (
            spec if yes or spec.terms is None else replace(spec, terms=(), kind="left out")
            for spec, yes in zip(self.leaves, chosen, strict=True)
        )
        return replace(self, leaves=tuple(specs))

    def by_leaf(self) -> dict[str, PerExampleGrads]:
        """One `PerExampleGrads` per parameter leaf, keyed by its path, e.g. `"['dense']['kernel']"`.

        The parameters of each are the leaf alone (`dot` takes an array). A leaf stacked by a scan also has `layers()`.
        """
        single = jax.tree.structure(0)
        return {
            spec.path: PerExampleGrads(self.operands, (spec,), single, self.n)
            for spec in self.leaves
            if spec.terms is not None
        }

    def layers(self) -> LayerContractions:
        """Contractions of a single stacked leaf layer by layer.

        Raises:
            ArgumentError: this is not one leaf whose leading axis was stacked by a scan.
        """
        if len(self.leaves) != 1 or self.leaves[0].stack is None:
            raise ArgumentError(
                "layers() needs one leaf stacked by a scan: take it from by_leaf(), "
                "and see explain() for which leaves are stacked"
            )
        return LayerContractions(Factored(self.leaves[0], self.operands), (self.leaves[0].stack,))

    def explain(self) -> Explanation:
        """What each leaf is stored as, which contraction its Gram uses, with FLOPs and bytes."""
        return Explanation(tuple(explain_leaf(leaf) for leaf in self._factored()))

    def _check_same_parameters(self, other: PerExampleGrads) -> None:
        mine, theirs = ([(s.path, s.shape) for s in g.leaves] for g in (self, other))
        if mine != theirs:
            raise ArgumentError(
                "the two PerExampleGrads belong to different parameters: pass gradients of the same parameter tree"
            )

    def _match(self, tree: PyTree, what: str, *, shapes: bool = True) -> list[Array]:
        leaves, treedef = jax.tree.flatten(tree)
        if treedef != self.treedef:
            raise ArgumentError(
                f"the {what} has structure {treedef}; it must be a pytree like the parameters, {self.treedef}"
            )
        for spec, leaf in zip(self.leaves, leaves, strict=True):
            if shapes and spec.terms is not None and tuple(leaf.shape) != spec.shape:
                raise ArgumentError(
                    f"the {what} has shape {tuple(leaf.shape)} at {spec.path or 'the only leaf'}; "
                    f"the parameter has {spec.shape}"
                )
        return leaves
