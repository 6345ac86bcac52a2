"""A Qwen3 from google-tunix with LoRA adapters, trained selectively without changing it.

The model is tiny and starts at random; a real one is loaded with Tunix and used the same way. The pool mixes sequences
that count up with sequences that count down, and the validation examples count up. Install and run it with

    pip install "greats-jax[tunix]"
    python examples/tunix_model.py
"""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx
from tunix.models.qwen3 import model as qwen3

from greats_jax.training import TrainState, make_selective_step

NUMBERS, LENGTH = 23, 10
STEPS, BATCH, KEEP, RATE = 60, 16, 4, 1e-2
SHAPE = qwen3.ModelConfig(
    num_layers=2,
    vocab_size=NUMBERS,
    embed_dim=32,
    hidden_dim=64,
    num_heads=4,
    head_dim=8,
    num_kv_heads=2,
    rope_theta=10_000,
    norm_eps=1e-6,
)


def adapted_model() -> nnx.Module:
    """The base model with adapters on every matrix of its layers, as in Tunix's own recipes."""
    targets = qwix.LoraProvider(
        module_path=".*q_proj|.*k_proj|.*v_proj|.*o_proj|.*(gate|up|down)_proj", rank=8, alpha=16
    )
    model = qwen3.Qwen3(SHAPE, rngs=nnx.Rngs(0))
    ids = jnp.zeros((1, LENGTH), jnp.int32)
    attend = jnp.ones((1, LENGTH, LENGTH), bool)
    return cast(nnx.Module, qwix.apply_lora_to_model(model, targets, ids, ids, None, attend, rngs=nnx.Rngs(1)))


def counting(rng: np.random.Generator, rows: int, direction: int | np.ndarray) -> np.ndarray:
    """Sequences i32[rows, length + 1] that count by 1, 2 or 3, up or down, around the circle of numbers."""
    start, by = rng.integers(0, NUMBERS, rows), rng.integers(1, 4, rows) * direction
    return ((start[:, None] + by[:, None] * np.arange(LENGTH + 1)) % NUMBERS).astype(np.int32)


def main() -> dict[str, float]:
    """Trains the adapters; returns the validation loss before and after (nats) and the share of kept that count up."""
    rng = np.random.default_rng(0)
    up = rng.random(1000) < 0.5
    pool, validation = counting(rng, 1000, np.where(up, 1, -1)), counting(rng, 8, 1)
    graphdef, params, frozen = nnx.split(adapted_model(), nnx.LoRAParam, ...)
    positions, causal = jnp.arange(LENGTH)[None], jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool))

    def loss_fn(params, frozen, sequence):
        model = nnx.merge(graphdef, params, frozen, copy=True)
        logits, _ = model(sequence[None, :-1], positions, None, causal)
        return optax.softmax_cross_entropy_with_integer_labels(logits[0], sequence[1:])[1:].mean()

    optimizer = optax.adamw(RATE)
    step = make_selective_step(loss_fn, optimizer, "greats", KEEP, learning_rate=RATE)
    state = TrainState.create(params, optimizer)
    losses, right = [], 0
    for _ in range(STEPS):
        rows = rng.choice(len(pool), BATCH, replace=False)
        state, metrics = step(state, frozen, pool[rows], validation)
        losses.append(float(metrics.validation_loss))
        right += np.sum(up[rows][metrics.selected])
    result = {"before": losses[0], "after": losses[-1], "share": float(right / (STEPS * KEEP))}
    print(f"{sum(x.size for x in jax.tree.leaves(params)):,} numbers of the adapters train.")
    print(f"Validation loss {result['before']:.2f} -> {result['after']:.2f} nats in {STEPS} updates;")
    print(f"{result['share']:.0%} of the kept sequences count up, {up.mean():.0%} of the pool does.")
    return result


if __name__ == "__main__":
    main()
