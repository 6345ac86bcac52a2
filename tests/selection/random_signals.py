"""Signals as random gradients would give them, and one way to run any rule on them, compiled once per shape."""

import functools
from typing import Any

import jax
import numpy as np

from greats_jax.selection import Selection, Signals, get

KEY = jax.random.key(0)
NAN, INF = float("nan"), float("inf")

# Rules with the settings that make their memory small.
UDS = "uds(size=5, width=4)"
DETERMINISTIC = (
    "regular", "max_loss", "grad_norm", "greats_first_order", "greats", "greats_adam", "cosine", "layer_wise",
    "partition_sel", "partition_sel(budgets=(2, 1))", "rho_loss", "sbert", UDS,
)  # fmt: skip
RANDOM = ("random_k", "opus")
RULES = (*DETERMINISTIC, *RANDOM)


def signals_of(**arrays: Any) -> Signals:
    """Signals in NumPy: JAX would compile every operation that prepares a test."""
    return Signals(**arrays)


def random_signals(seed: int, n: int = 7, m: int = 3) -> Signals:
    """All signals of n candidates, none of them broken."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    grads, target = rng.normal(size=(n, 9)) * rng.uniform(0.3, 2, (n, 1)), rng.normal(size=9)
    gram = (grads @ grads.T).astype(np.float32)
    return signals_of(
        losses=rng.uniform(0.1, 4, n).astype(np.float32),
        alignment=(grads @ target).astype(np.float32),
        preconditioned_alignment=normal(n),
        gram=gram,
        squared_norms=gram.diagonal(),
        per_leaf_alignment={"bias": normal(n), "stacked": normal(2, n)},
        reference_losses=rng.uniform(0.1, 4, n).astype(np.float32),
        embeddings=normal(n, 6),
        validation_embeddings=normal(m, 6),
        logit_summaries={"nuclear": rng.uniform(1, 2, n).astype(np.float32), "projection": normal(n, 4)},
        sources=rng.integers(0, 3, n),
        valid=np.ones(n, bool),
    )


def with_some_invalid(signals: Signals, seed: int) -> Signals:
    """About every fourth candidate has no labels."""
    allowed = np.random.default_rng(seed + 10_000).random(len(np.asarray(signals.valid))) > 0.25
    return signals._replace(valid=allowed)


def with_one(array: Any, index: int, value: float) -> np.ndarray:
    """The array with that row set to the value."""
    changed = np.array(array)
    changed[index] = value
    return changed


def with_one_gram(gram: Any, index: int, value: float) -> np.ndarray:
    """The matrix with that row and column set to the value."""
    return with_one(with_one(gram, index, value).T, index, value)


@functools.cache
def first_memory(expression: str) -> Any:
    """The rule's memory before the first step; None for a rule without."""
    init = get(expression).init
    return None if init is None else jax.tree.map(np.asarray, init())


@functools.cache
def _compiled(expression: str, k: int) -> Any:
    rule = get(expression)
    return jax.jit(lambda signals, rate, key: rule(signals, k, learning_rate=rate, key=key))


def choose(expression: str, signals: Signals, k: int, rate: float = 0.1, key: jax.Array = KEY) -> Any:
    """What the rule selects under jit, with a traced learning rate; from an empty memory if none is given."""
    if signals.memory is None:
        signals = signals._replace(memory=first_memory(expression))
    return jax.tree.map(np.asarray, _compiled(expression, k)(signals, rate, key))


def picked(selection: Selection) -> list[int]:
    """The picks in their order, without empty slots."""
    return [int(i) for i, w in zip(selection.indices, selection.weights, strict=True) if w > 0]


def all_picks(found: Any) -> list[list[int]]:
    """`picked` of a selection; of every parameter and layer of a layer-wise one."""
    if isinstance(found, Selection):
        return [picked(found)]
    rows = []
    for part in jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, Selection)):
        for indices, weights in zip(np.atleast_2d(part.indices), np.atleast_2d(part.weights), strict=True):
            rows.append(picked(Selection(indices, weights)))
    return rows


def slots(found: Any) -> list[Selection]:
    """The selections in what a rule returned."""
    return jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, Selection))
