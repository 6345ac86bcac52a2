"""What can be put around a rule.

`soft` and `above` change the rule's own picks. The others, like sums, choose anew from its scores and overlaps, and
refuse a rule that draws, limits or weighs its picks (opus, partition_sel, sampled, quota, soft, above): that belongs
outside of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from greats_jax.errors import ArgumentError
from greats_jax.selection.picking import draw, greedy, greedy_within, standardised
from greats_jax.selection.registry import wrapper
from greats_jax.selection.rule import Rule, adjusted, composed, written
from greats_jax.selection.signals import Selection, Signals, eligible, present

Array = jax.Array


def _found(signals: Signals, selections: Sequence[Selection]) -> tuple[Array, Array | None, Array]:
    """Scores, overlap and eligibility of the one part."""
    scores, overlap = selections[0].scores, selections[0].overlap
    assert scores is not None  # seen to by `composed`
    return scores, overlap, eligible(signals, scores, overlap)


def _above_zero(name: str, setting: str, value: float) -> None:
    if not value > 0:
        raise ArgumentError(f"{name}({setting}={value:g}): it must be above 0")


def _named(name: str, rule: Rule, **settings: float) -> str:
    inside = ", ".join([rule.name, *(f"{key}={written(value)}" for key, value in settings.items())])
    return f"{name}({inside})"


@wrapper
def normalised(rule: Rule) -> Rule:
    """Scores with mean 0 and standard deviation 1 over the candidates that can be picked, the overlap on that scale.

    To add up rules whose scores have different units. The picks are those of the rule itself.
    """

    def choose(signals: Signals, found: Sequence[Selection], k: int, key: Array | None) -> Selection:
        scores, overlap, allowed = _found(signals, found)
        scaled, deviation = standardised(scores, allowed)
        return greedy(scaled, None if overlap is None else overlap / deviation, k, allowed)

    return composed(_named("normalised", rule), [rule], choose)


@wrapper
def soft(rule: Rule, *, temperature: float = 1.0) -> Rule:
    """The rule's picks with weights `~ exp(z / temperature)`, z their standardised scores, instead of equal ones.

    With `keep` = n all candidates take part and the weights alone select.
    """
    _above_zero("soft", "temperature", temperature)

    def choose(signals: Signals, found: Sequence[Selection], k: int, key: Array | None) -> Selection:
        scores, _, allowed = _found(signals, found)
        picks = found[0]
        level = standardised(scores, allowed)[0][picks.indices] / temperature
        level = jnp.where(picks.weights > 0, level, -jnp.inf)
        return picks._replace(weights=jnp.where(picks.weights > 0, jax.nn.softmax(level), 0.0))

    return adjusted(_named("soft", rule, temperature=temperature), rule, choose)


@wrapper
def sampled(rule: Rule, *, temperature: float = 1.0) -> Rule:
    """Draws k without replacement with probability `~ exp(z / temperature)`, z the standardised scores; no overlap."""
    _above_zero("sampled", "temperature", temperature)

    def choose(signals: Signals, found: Sequence[Selection], k: int, key: Array | None) -> Selection:
        if key is None:
            raise ArgumentError("sampled draws at random: pass key=jax.random.key(...)")
        scores, _, allowed = _found(signals, found)
        drawn = draw(standardised(scores, allowed)[0] / temperature, k, allowed, key)
        return drawn._replace(scores=scores)

    return composed(_named("sampled", rule, temperature=temperature), [rule], choose, by_scores=False)


@wrapper
def above(rule: Rule, *, threshold: float = 0.0) -> Rule:
    """The rule's picks without those whose score is not above the threshold: at most k, and no update when none is."""

    def choose(signals: Signals, found: Sequence[Selection], k: int, key: Array | None) -> Selection:
        scores, picks = _found(signals, found)[0], found[0]
        kept = (picks.weights > 0) & (scores[picks.indices] > threshold)
        return picks._replace(indices=jnp.where(kept, picks.indices, 0), weights=jnp.where(kept, picks.weights, 0.0))

    return adjusted(_named("above", rule, threshold=threshold), rule, choose)


@wrapper
def diverse(rule: Rule, *, strength: float = 1.0) -> Rule:
    """Each pick lowers the scores of the others by `strength` standard deviations times the cosine of the gradients.

    GREATS' own penalty vanishes at small learning rates; this one does not depend on them. Cost: the Gram matrix.
    """
    _above_zero("diverse", "strength", strength)

    def choose(signals: Signals, found: Sequence[Selection], k: int, key: Array | None) -> Selection:
        scores, overlap, allowed = _found(signals, found)
        gram = present(signals, "gram")
        lengths = jnp.sqrt(jnp.diagonal(gram))
        cosines = gram / jnp.where(lengths > 0, lengths, 1.0) / jnp.where(lengths > 0, lengths, 1.0)[:, None]
        allowed &= jnp.isfinite(lengths)
        penalty = strength * standardised(scores, allowed)[1] * cosines
        return greedy(scores, penalty if overlap is None else overlap + penalty, k, allowed)

    return composed(_named("diverse", rule, strength=strength), [rule], choose, ["gram"])


@wrapper
def quota(rule: Rule, *, share: float = 0.5) -> Rule:
    """The rule with no more than a share of the k picks, rounded up, from any one source."""
    if not 0 < share <= 1:
        raise ArgumentError(f"quota(share={share:g}): give the largest share of one source, above 0 and at most 1")

    def choose(signals: Signals, found: Sequence[Selection], k: int, key: Array | None) -> Selection:
        scores, overlap, allowed = _found(signals, found)
        limit = math.ceil(round(share * k, 6))
        return greedy_within(scores, overlap, k, allowed, present(signals, "sources"), limit)

    return composed(_named("quota", rule, share=share), [rule], choose, ["sources"], by_scores=False)
