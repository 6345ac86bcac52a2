"""A rule applied to groups of candidates apart from each other, as when every device chooses among its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from greats_jax.errors import ArgumentError
from greats_jax.selection.rule import Rule
from greats_jax.selection.signals import Selection, Signals, candidate_count

Array = jax.Array

_SHARED = ("validation_embeddings", "optimizer")  # the same for all groups


def in_groups(rule: Rule, groups: int) -> Rule:
    """The rule that picks k / groups in each of `groups` runs of n / groups candidates, looking at no other run.

    Only the blocks of the Gram matrix within a run are read; `gram` may also be given as those blocks alone,
    f32[groups, b, b]. Picks come group by group. The memory of a rule that keeps some is one for each group.

    Raises:
        ArgumentError: the rule chooses for every parameter; when called, k or n is not a multiple of `groups`.
    """
    if groups == 1:
        return rule
    if "per_leaf_alignment" in rule.needs:
        raise ArgumentError(f"the rule {rule.name!r} chooses for every parameter: it needs all candidates in one group")

    def select(signals: Signals, k: int, *, learning_rate: Any, key: Array | None) -> Selection:
        gram = signals.gram
        cut_already = gram is not None and gram.ndim == 3
        n = groups * gram.shape[-1] if gram is not None and cut_already else candidate_count(signals)
        if n % groups or k % groups:
            raise ArgumentError(f"{k} of {n} candidates cannot be chosen in {groups} equal groups: make both multiples")
        b = n // groups
        if gram is not None and not cut_already:
            gram = _blocks(gram, groups)
        shared = signals._replace(**dict.fromkeys(set(Signals._fields) - set(_SHARED)))
        own = signals._replace(**dict.fromkeys((*_SHARED, "gram", "memory")))
        cut = jax.tree.map(lambda x: x.reshape(groups, b, *x.shape[1:]), own)._replace(gram=gram, memory=signals.memory)

        def one(part: Signals, group: Array) -> Selection:
            whole = part._replace(**{name: getattr(shared, name) for name in _SHARED})
            drawn = None if key is None else jax.random.fold_in(key, group)
            return rule(whole, k // groups, learning_rate=learning_rate, key=drawn)._replace(overlap=None)

        found = jax.vmap(one)(cut, jnp.arange(groups))
        taken = found.weights > 0
        indices = jnp.where(taken, found.indices + b * jnp.arange(groups)[:, None], 0)
        scores = None if found.scores is None else found.scores.reshape(n)
        return Selection(indices.ravel(), found.weights.ravel(), scores, found.memory)

    init = rule.init
    many = None if init is None else lambda: jax.tree.map(lambda x: jnp.stack([x] * groups), init())
    return Rule(rule.name, rule.needs, select, many, by_scores=False)


def _blocks(gram: Array, groups: int) -> Array:
    """f32[n, n] -> the blocks on its diagonal, f32[groups, b, b]."""
    b = len(gram) // groups
    runs = jnp.arange(groups)
    return gram.reshape(groups, b, groups, b)[runs, :, runs]
