"""SBERT: candidates that read like the validation examples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from greats_jax.selection.picking import top_k
from greats_jax.selection.registry import register
from greats_jax.selection.signals import Selection, Signals, eligible, present

Array = jax.Array


@register("sbert", needs={"embeddings", "validation_embeddings"})
def sbert(signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
    """The k candidates with the largest mean cosine to the validation examples. f32[n, e], f32[m, e] -> i32[k].

    Cost: none in the step, once the texts are embedded. Source: baseline of GREATS, sentence embeddings of
    all-MiniLM-L6-v2. The model is not looked at, so what is chosen does not depend on what it has learnt.
    """
    ours, theirs = (_unit(present(signals, name)) for name in ("embeddings", "validation_embeddings"))
    scores = jnp.matmul(ours, theirs.mean(0), precision=lax.Precision.HIGHEST)
    return top_k(scores, k, eligible(signals, scores))


def _unit(rows: Array) -> Array:
    lengths = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(lengths > 0, lengths, 1.0)
