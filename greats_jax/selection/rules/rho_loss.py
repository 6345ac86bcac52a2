"""RHO-Loss: what is not learnt yet, less what cannot be learnt."""

from __future__ import annotations

from typing import Any

import jax

from greats_jax.selection.picking import top_k
from greats_jax.selection.registry import register
from greats_jax.selection.signals import Selection, Signals, eligible, present

Array = jax.Array


@register("rho_loss", needs={"losses", "reference_losses"})
def rho_loss(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The k candidates with the largest `l_i - l_i of a frozen reference model`. f32[n] -> i32[k].

    Both losses are over the same tokens with the same labels, which the released code of GREATS gets wrong.

    Cost: a forward pass of the candidates, and one of the reference unless its losses were computed beforehand.
    Source: Mindermann et al. 2022 (reducible holdout loss).
    """
    scores = present(signals, "losses") - present(signals, "reference_losses")
    return top_k(scores, k, eligible(signals, scores))
