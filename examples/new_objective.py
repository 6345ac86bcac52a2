"""A selection rule of one's own, registered under a name and used by the compiled step like any other.

A line is fitted to points of which half have the wrong sign; a few right ones are the validation examples. The new rule
keeps only what helps them, and learns more from what helps more. Run it with

    python examples/new_objective.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from greats_jax.selection import eligible, register, top_k
from greats_jax.training import TrainState, make_selective_step


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
    inputs = rng.normal(size=(1000, 8))
    signs = np.where(rng.random(1000) < 0.5, 1, -1)
    pool = (inputs.astype(np.float32), (signs * (inputs @ truth)).astype(np.float32))
    good = rng.normal(size=(8, 8))
    validation = (good.astype(np.float32), (good @ truth).astype(np.float32))

    def loss_fn(slopes, frozen, example):
        x, y = example
        return optax.huber_loss(x @ slopes, y)

    optimizer = optax.sgd(0.1)
    step = make_selective_step(loss_fn, optimizer, rule, keep=8, learning_rate=0.1)
    state = TrainState.create(jnp.zeros(8), optimizer)
    for _ in range(200):
        rows = rng.choice(1000, 32, replace=False)
        state, _ = step(state, {}, jax.tree.map(lambda x: x[rows], pool), validation)  # noqa: B023
    return float(np.linalg.norm(state.params - truth) / np.linalg.norm(truth))


def main() -> dict[str, float]:
    """Compares the new rule with chance and with GREATS."""
    results = {rule: distance(rule) for rule in ("random_k", "greats", "only_helpful")}
    print("Relative error of the slopes after 200 updates:")
    for rule, error in results.items():
        print(f"{rule:14}{error:8.2%}")
    return results


if __name__ == "__main__":
    main()
