"""OPUS: optimizer-aware scores, drawn rather than ranked."""

from __future__ import annotations

from typing import Any

import jax

from greats_jax.errors import ArgumentError
from greats_jax.selection.picking import draw, standardised
from greats_jax.selection.registry import register
from greats_jax.selection.signals import Selection, Signals, eligible, present

Array = jax.Array


@register("opus", needs={"losses", "preconditioned_alignment"}, by_scores=False)
def opus(
    signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None, temperature: float = 0.9
) -> Selection:
    """Draw k candidates without replacement with `p_i ~ exp(U_i / temperature)`. f32[n] -> i32[k].

    `U_i` is `<P g_i, v>` with mean 0 and standard deviation 1 over the candidates: a temperature then means the same
    for every model and step. P is what the optimizer makes of a gradient (AdamW's diagonal, Muon's). The products are
    exact, or taken on random features of the gradients where the step is told to project (`Scoring.projection` with
    `alignment="projected"`), as the paper does to save time that this engine does not spend.

    Cost: as `greats_adam`. Source: OPUS (arXiv 2602.05400).
    """
    if key is None:
        raise ArgumentError("opus draws at random: pass key=jax.random.key(...)")
    if not temperature > 0:
        raise ArgumentError(
            f"opus(temperature={temperature:g}): it must be above 0; greats_adam takes the best instead"
        )
    scores = present(signals, "preconditioned_alignment")
    allowed = eligible(signals, scores)
    return draw(standardised(scores, allowed)[0] / temperature, k, allowed, key)._replace(scores=scores)
