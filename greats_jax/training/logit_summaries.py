"""What UDS looks at of an example's logits: how many directions they spread over, and a short random projection."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

_TOKENS, _CLASSES = 8, 128


def summarise(logits: Array, mask: Array) -> dict[str, Array]:
    """Summaries of the logits X of one example's label tokens.

    Args:
        logits: f32[t, v].
        mask: bool[t], the positions that count.

    Returns:
        `nuclear`: f32[], the nuclear norm (sum of singular values) of X divided by the number of positions.
        `projection`: f32[1024], `A X B / sqrt(positions)` laid flat, with random signs A [8, t] and every class added
        with a random sign to one of 128 slots by B [v, 128]: in the mean over such maps the squared length of the
        projection is the mean squared length of a row of X, and so for differences of two examples of one length. The
        map is fixed.

    Cost: `2 t^2 v` FLOPs and one eigenvalue problem [t, t]. Source: UDS (arXiv 2510.16882), which decomposes [t, v],
    counts padding, and lets both grow with the length.
    """
    rows = jnp.where(mask[:, None], logits.astype(jnp.float32), 0.0)
    count = jnp.maximum(mask.sum(), 1)
    # Squared singular values are the eigenvalues of X X', which is small: v is the vocabulary.
    squares = jnp.linalg.eigvalsh(jnp.matmul(rows, rows.T, precision="highest"))
    nuclear = jnp.sqrt(jnp.maximum(squares, 0.0)).sum() / count
    t, v = logits.shape
    slot_key, sign_key, token_key = jax.random.split(jax.random.key(0), 3)
    slots = jax.random.randint(slot_key, (v,), 0, _CLASSES)
    mixed = jax.random.rademacher(token_key, (_TOKENS, t), jnp.float32) @ rows / jnp.sqrt(1.0 * _TOKENS)
    signed = mixed * jax.random.rademacher(sign_key, (v,), jnp.float32)
    projection = jnp.zeros((_TOKENS, _CLASSES)).at[:, slots].add(signed) / jnp.sqrt(count)
    return {"nuclear": nuclear, "projection": projection.reshape(-1)}
