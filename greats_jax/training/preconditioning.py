"""What an optimizer makes of a gradient: its linear response, so that scores live in the geometry of the update.

Shared by scoring (`greats_adam`, `opus`) and by the analysis of how well scores predict.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
PyTree = Any

# How much larger the linear response may be than the response to the direction itself before the latter is taken.
_TRUSTED = 10.0


def precondition(
    optimizer: optax.GradientTransformation, opt_state: PyTree, params: PyTree, direction: PyTree
) -> PyTree:
    """`eta P_t v`: how far the coming update moves against a small gradient `v` that is added to it.

    The response is the derivative of the optimizer's own update at a zero gradient, so it needs no knowledge of the
    optimizer: AdamW gives its diagonal `1 / (sqrt(v_t) + eps)` with the bias corrections and the momentum's share
    `1 - b1` of the step, plain gradient descent gives the identity, Muon the derivative of its orthogonalisation. As
    P is linear and symmetric, `<P g_i, v> = <g_i, P v>`: one call serves all examples.

    Where the optimizer has no history (a second moment of zero: a token never seen, LoRA's A at first) the derivative
    is `1 / eps`, which no real update shows. An entry whose derivative is over 10 times its response to the direction
    itself, half the difference of the updates for +v and -v, takes that response. It does so too where the derivative
    is zero (Lion's sign) or not finite (Muon before its first step).

    Args:
        optimizer: any optax transformation; the learning rate it applies is part of the response.
        opt_state: its state; not changed.
        params: floating parameters.
        direction: pytree like `params`.

    Returns:
        A pytree like `direction`. When the update is zero whatever the gradient (a learning rate of 0 in warm-up), the
        direction itself, so that ranking by it goes on. Cost: three updates of the optimizer.

    Source: OPUS (arXiv 2602.05400) for the preconditioned alignment; the rule for entries without history is ours.
    """

    def update(grads: PyTree) -> PyTree:
        return optimizer.update(grads, opt_state, params)[0]

    nothing = jax.tree.map(jnp.zeros_like, direction)
    _, derivative = jax.jvp(update, (nothing,), (direction,))
    forth, back = update(direction), update(jax.tree.map(jnp.negative, direction))

    def respond(slope: Array, plus: Array, minus: Array) -> Array:
        response = (plus - minus) / 2
        trusted = jnp.isfinite(slope) & (slope != 0) & (jnp.abs(slope) <= _TRUSTED * jnp.abs(response))
        return -jnp.where(trusted, slope, response)

    found = jax.tree.map(respond, derivative, forth, back)
    moves = jnp.stack([jnp.any(x != 0) for x in jax.tree.leaves(found)]).any()
    return jax.tree.map(lambda x, v: jnp.where(moves, x, v).astype(v.dtype), found, direction)
