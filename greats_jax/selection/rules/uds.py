"""UDS: spread of the logits and distance to what was chosen before; forward only, no validation set."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from greats_jax.errors import ArgumentError
from greats_jax.selection.picking import top_k
from greats_jax.selection.registry import register
from greats_jax.selection.signals import Selection, Signals, eligible, present

Array = jax.Array
Queue = dict[str, Array]


def _empty(size: int = 1024, width: int = 1024) -> Queue:
    return {"rows": jnp.zeros((size, width), jnp.float32), "pushed": jnp.zeros((), jnp.int32)}


def _push(signals: Signals, selection: Selection) -> Queue:
    """The queue with the chosen rows in the place of the oldest."""
    queue = signals.memory
    chosen = selection.weights > 0
    size, count = queue["rows"].shape[0], chosen.sum(dtype=jnp.int32)
    order = jnp.cumsum(chosen) - 1
    place = (queue["pushed"] + order) % size
    # Of more than fit, the last stay: two rows for one place would be written in no defined order.
    stays = chosen & (order >= count - size)
    rows = present(signals, "logit_summaries")["projection"][selection.indices]
    filled = jnp.asarray(queue["rows"]).at[jnp.where(stays, place, size)].set(rows, mode="drop")
    return {"rows": filled, "pushed": queue["pushed"] + count}


@register("uds", needs={"losses", "logit_summaries", "memory"}, init=_empty, remember=_push)
def uds(
    signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None,
    alpha: float = 1.0, size: int = 1024, width: int = 1024,
) -> Selection:  # fmt: skip
    """The k candidates with the largest `|X_i|_* + alpha * mean distance of z_i to the queue`. -> i32[k].

    X_i are the logits of the label tokens, `|.|_*` the nuclear norm divided by their number, z_i a random projection of
    X_i (`logit_summaries`: "nuclear" f32[n], "projection" f32[n, width]; the trainer makes them, see
    `training.logit_summaries`). The queue holds the projections of the last `size` chosen candidates; while it is empty
    the distance is 0. Lengths are divided out and the projection keeps them, so `alpha` does not depend on the length
    of a text nor on the vocabulary as it does in the released code; it is not on the scale of the paper's 1.5e-3.

    Cost: a forward pass of the candidates, `2 t^2 V` FLOPs each for the nuclear norm, `n size width` for distances.
    Source: UDS (arXiv 2510.16882).
    """
    if min(size, width) < 1:
        raise ArgumentError(f"uds(size={size}, width={width}): the memory needs at least one row and one column")
    summaries = present(signals, "logit_summaries")
    rows, queue = summaries["projection"], present(signals, "memory")
    full = jnp.arange(queue["rows"].shape[0]) < queue["pushed"]
    squares = (rows**2).sum(1)[:, None] + (queue["rows"] ** 2).sum(1)
    # A difference of close numbers: the products must not be rounded to fewer digits, as accelerators do by default.
    squares -= 2 * jnp.matmul(rows, queue["rows"].T, precision=lax.Precision.HIGHEST)
    distances = jnp.where(full, jnp.sqrt(jnp.maximum(squares, 0.0)), 0.0).sum(1) / jnp.maximum(full.sum(), 1)
    scores = summaries["nuclear"] + alpha * distances
    return top_k(scores, k, eligible(signals, scores))
