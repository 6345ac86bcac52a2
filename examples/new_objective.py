"""A selection rule of one's own, registered under a name and used by the compiled step like any other.

A line is fitted to points of which half have the wrong sign; a few right ones are the validation examples. The new rule
keeps only what helps them, and learns more from what helps more. Run it with

    python examples/new_objective.py
"""

import jax.numpy as jnp
import numpy as np
import optax

from greats_jax.selection import eligible, register, top_k
from greats_jax.training import TrainState, make_selective_step

POOL, BATCH, KEEP, STEPS, RATE = 1000, 32, 8, 200, 0.03


@register("only_helpful", needs={"losses", "alignment"})
def only_helpful(signals, k, *, learning_rate, key):
    """Up to k candidates that lower the validation loss, weighted by how much: w_i = max(0, <g_i, v>)."""
    help_ = signals.alignment
    picked = top_k(help_, k, eligible(signals, help_) & (help_ > 0))
    return picked._replace(weights=jnp.where(picked.weights > 0, help_[picked.indices], 0.0))


def distance(rule: str) -> float:
    """Trains with a rule; returns how far the fitted slopes are from the true ones."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=8)
    signs = np.where(rng.random(POOL) < 0.5, 1, -1)
    inputs, good = rng.normal(size=(POOL, 8)), rng.normal(size=(8, 8))
    outputs, validation = signs * (inputs @ truth), (good, good @ truth)

    def loss_fn(slopes, frozen, example):
        x, y = example
        return optax.huber_loss(x @ slopes, y)

    optimizer = optax.sgd(RATE)
    step = make_selective_step(loss_fn, optimizer, rule, KEEP, learning_rate=RATE)
    state = TrainState.create(jnp.zeros(8), optimizer)
    for _ in range(STEPS):
        rows = rng.choice(POOL, BATCH, replace=False)
        state, _ = step(state, {}, (inputs[rows], outputs[rows]), validation)
    return float(np.linalg.norm(state.params - truth) / np.linalg.norm(truth))


def main() -> dict[str, float]:
    """Compares the new rule with chance and with GREATS."""
    results = {rule: distance(rule) for rule in ("random_k", "greats", "only_helpful")}
    print(f"Relative error of the slopes after {STEPS} updates:")
    for rule, error in results.items():
        print(f"{rule:14}{error:8.2%}")
    return results


if __name__ == "__main__":
    main()
