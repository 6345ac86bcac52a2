"""GREATS and what follows from it: alignment with the validation gradient, in several geometries."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from greats_jax.errors import ArgumentError
from greats_jax.selection.picking import greedy, top_k
from greats_jax.selection.registry import register
from greats_jax.selection.signals import Selection, Signals, eligible, present

Array = jax.Array


@register("greats_first_order", needs={"losses", "alignment"})
def greats_first_order(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The k candidates with the largest `<g_i, v>`, GREATS without its redundancy term. f32[n] -> i32[k].

    Cost: forward and backward of candidates and validation rows, one inner product each. Source: GREATS, eq. 3 with
    the interaction left out; GhostSuite reports it equal or better at practical learning rates.
    """
    alignment = present(signals, "alignment")
    return top_k(alignment, k, eligible(signals, alignment))


@register("greats", needs={"losses", "alignment", "gram"})
def greats(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """Greedy by `<g_i, v> - eta * sum over picked s of <g_i, g_s>`. f32[n], f32[n, n] -> i32[k].

    The published utility divided by eta, so that eta = 0 (warm-up) is the first-order rule. `learning_rate` is eta.

    Cost: as first order plus the Gram matrix [n, n]. Source: GREATS (Wang et al., NeurIPS 2024), Algorithm 1 with the
    Hessian taken as the identity.
    """
    alignment, gram = present(signals, "alignment"), present(signals, "gram")
    if learning_rate is None:
        raise ArgumentError("greats weighs overlap by the learning rate: pass learning_rate=")
    overlap = learning_rate * gram
    # At eta = 0 the overlap of a candidate that is not finite would pass for 0: look at the Gram matrix itself.
    return greedy(alignment, overlap, k, eligible(signals, alignment, gram))


@register("greats_adam", needs={"losses", "preconditioned_alignment"})
def greats_adam(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The k candidates with the largest `<P g_i, v>`, P what the optimizer makes of a gradient. f32[n] -> i32[k].

    For AdamW, P is its diagonal `1 / (sqrt(v_t) + eps)`; for Muon the derivative of its orthogonalisation; for plain
    gradient descent this is `greats_first_order`. The step preconditions the validation direction once, so there is no
    work per example: see `training.preconditioning`.

    Cost: as first order, and three updates of the optimizer. Source: the Adam-aware score of OPUS (arXiv 2602.05400);
    "In-Run Data Shapley for Adam" measures how far plain gradients are from it.
    """
    scores = present(signals, "preconditioned_alignment")
    return top_k(scores, k, eligible(signals, scores))


@register("cosine", needs={"losses", "alignment", "squared_norms"})
def cosine(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The k candidates with the largest `<g_i, v> / |g_i|`, the cosine up to the factor `|v|`. f32[n] -> i32[k].

    Length no longer counts: short answers, whose gradients are large, win less often. A gradient of zero scores 0.

    Cost: as first order and one norm each. Source: LESS (Xia et al. 2024), here in every step and without Adam's
    moments.
    """
    alignment, squares = present(signals, "alignment"), present(signals, "squared_norms")
    norms = jnp.sqrt(jnp.maximum(squares, 0.0))  # rounding can leave a square of 0 below it
    scores = alignment / jnp.where(norms > 0, norms, 1.0)
    # A norm that is not finite leaves a finite score: look at the norm itself.
    return top_k(scores, k, eligible(signals, scores) & jnp.isfinite(squares))
