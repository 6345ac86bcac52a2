"""The published rules: each a pure function of signals.

Notation: g_i is the gradient of candidate i, v the mean validation gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from greats_jax.errors import ArgumentError
from greats_jax.selection.picking import greedy, top_k
from greats_jax.selection.registry import register
from greats_jax.selection.signals import Selection, Signals, candidate_count, eligible

Array = jax.Array


@register("regular", needs=())
def regular(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The first k candidates in batch order; with k = n the whole batch, which is ordinary training.

    Cost: none. Source: the baseline of GREATS (Wang et al., NeurIPS 2024).
    """
    order = -jnp.arange(candidate_count(signals), dtype=jnp.float32)
    return top_k(order, k, eligible(signals, order))._replace(scores=None)


@register("random_k", needs=())
def random_k(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """Draw k candidates uniformly without replacement, by `key`.

    Cost: none. The control for every rule that keeps k of n.
    """
    if key is None:
        raise ArgumentError("random_k draws at random: pass key=jax.random.key(...)")
    draw = jax.random.uniform(key, (candidate_count(signals),))
    return top_k(draw, k, eligible(signals, draw))._replace(scores=None)


@register("max_loss", needs={"losses"})
def max_loss(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The k candidates with the largest loss.

    Cost: one forward pass of the candidates. Source: baseline of GREATS.
    """
    losses = _present(signals.losses, "losses")
    return top_k(losses, k, eligible(signals, losses))


@register("grad_norm", needs={"losses", "squared_norms"})
def grad_norm(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The k candidates with the largest gradient norm, score `|g_i|`.

    Cost: forward and backward of the candidates and one norm each. Source: baseline of GREATS.
    """
    norms = jnp.sqrt(_present(signals.squared_norms, "squared_norms"))
    return top_k(norms, k, eligible(signals, norms))


@register("greats_first_order", needs={"losses", "alignment"})
def greats_first_order(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The k candidates with the largest `<g_i, v>`: GREATS without its redundancy term.

    Cost: forward and backward of candidates and validation rows, one inner product each. Source: GREATS, eq. 3 with
    the interaction left out; GhostSuite reports it equal or better at practical learning rates.
    """
    alignment = _present(signals.alignment, "alignment")
    return top_k(alignment, k, eligible(signals, alignment))


@register("greats", needs={"losses", "alignment", "gram"})
def greats(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """Greedy by `<g_i, v> - eta * sum over picked s of <g_i, g_s>`.

    The published utility divided by eta, so that eta = 0 (warm-up) is the first-order rule. `learning_rate` is eta.

    Cost: as first order plus the Gram matrix [n, n]. Source: GREATS (Wang et al., NeurIPS 2024), Algorithm 1 with the
    Hessian taken as the identity.
    """
    alignment, gram = _present(signals.alignment, "alignment"), _present(signals.gram, "gram")
    if learning_rate is None:
        raise ArgumentError("greats weighs overlap by the learning rate: pass learning_rate=")
    allowed = eligible(signals, alignment) & jnp.isfinite(jnp.diagonal(gram))
    return greedy(alignment, learning_rate * gram, k, allowed)


def _present(value: Array | None, name: str) -> Array:
    if value is None:
        raise ArgumentError(f"this rule needs the signal {name!r}: pass Signals({name}=...)")
    return value
