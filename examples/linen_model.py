"""A Flax Linen model trained selectively: of two sources, it learns from the one that its few examples come from.

The pool mixes sequences that count up with sequences that count down, each by a step of its own. The validation
examples count up. Run it with

    python examples/linen_model.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from greats_jax.training import TrainState, make_selective_step

NUMBERS, LENGTH, WIDTH = 23, 10, 32
STEPS, BATCH, KEEP, RATE = 120, 32, 8, 3e-3


class Decoder(nn.Module):
    """One block: attention to the past, then a feed-forward layer."""

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """Numbers [t] -> logits of the next number [t, numbers]."""
        x = nn.Embed(NUMBERS, WIDTH)(ids) + nn.Embed(LENGTH, WIDTH)(jnp.arange(ids.size))
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x), mask=nn.make_causal_mask(ids))
        x = x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))
        return nn.Dense(NUMBERS)(nn.LayerNorm()(x))


def counting(rng: np.random.Generator, rows: int, direction: int | np.ndarray) -> np.ndarray:
    """Sequences i32[rows, length + 1] that count by 1, 2 or 3, up or down, around the circle of numbers."""
    start, by = rng.integers(0, NUMBERS, rows), rng.integers(1, 4, rows) * direction
    return ((start[:, None] + by[:, None] * np.arange(LENGTH + 1)) % NUMBERS).astype(np.int32)


def main() -> dict[str, float]:
    """Trains; returns the share of kept sequences that count up, in the first and in the last quarter of the steps."""
    rng = np.random.default_rng(0)
    up = rng.random(2000) < 0.5
    pool, validation = counting(rng, 2000, np.where(up, 1, -1)), counting(rng, 12, 1)

    model = Decoder()
    params = jax.jit(model.init)(jax.random.key(0), validation[0, :-1])

    def loss_fn(params, frozen, sequence):
        logits: jax.Array = model.apply(params, sequence[:-1])  # pyright: ignore[reportAssignmentType]
        # The first number says nothing about the direction, so the second cannot be known.
        return optax.softmax_cross_entropy_with_integer_labels(logits, sequence[1:])[1:].mean()

    optimizer = optax.adamw(RATE)
    step = make_selective_step(loss_fn, optimizer, "greats", KEEP, learning_rate=RATE)
    state = TrainState.create(params, optimizer)
    kept_up = []
    for _ in range(STEPS):
        rows = rng.choice(len(pool), BATCH, replace=False)
        state, metrics = step(state, {}, pool[rows], validation)
        kept_up.append(np.mean(up[rows][metrics.selected]))
    quarter = STEPS // 4
    result = {"first": float(np.mean(kept_up[:quarter])), "last": float(np.mean(kept_up[-quarter:]))}
    print("Share of kept sequences that count up, as the validation examples do (half of the pool does):")
    print(f"first {quarter} updates {result['first']:.0%}, last {quarter} updates {result['last']:.0%}")
    return result


if __name__ == "__main__":
    main()
