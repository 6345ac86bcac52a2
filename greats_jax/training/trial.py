"""A rule on signals of no meaning: tried on shapes alone, so that a mistake shows at once, and timed by itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from greats_jax.errors import ArgumentError, ConfigError
from greats_jax.selection import Rule, Signals


def try_rule(rule: Rule, n: int, k: int) -> None:
    """Trace the rule on signals of n candidates, computing nothing.

    Raises:
        ConfigError: The rule refuses its settings or what it is combined with.
    """
    signals = _shapes(rule, n)
    if signals is None:
        return
    try:
        jax.eval_shape(_program(rule, k), signals, jnp.zeros(()), jax.random.key(0))
    except ArgumentError as error:
        raise ConfigError(f"method: {error}") from None


def seconds_of_rule(rule: Rule, n: int, k: int, runs: int = 5) -> float | None:
    """How long the rule takes to choose k of n candidates once it has its signals: the median of a few runs.

    Returns:
        Seconds on one device, with the time it takes to be called; None for a rule that looks at an optimizer's state.
    """
    shapes = _shapes(rule, n)
    if shapes is None:
        return None
    signals = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), shapes)
    choose = jax.jit(_program(rule, k))
    arguments = signals, jnp.full((), 1e-3), jax.random.key(0)
    seconds = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        jax.block_until_ready(choose(*arguments))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])  # the first one compiled


def _shapes(rule: Rule, n: int) -> Signals | None:
    """Shapes of the signals of n candidates that a rule needs."""
    if "optimizer" in rule.needs:
        return None  # its state looks different for every optimizer
    vector, whole = jax.ShapeDtypeStruct((n,), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32)
    rows = jax.ShapeDtypeStruct((n, 8), jnp.float32)
    shapes: dict[str, Any] = {
        "losses": vector,
        "alignment": vector,
        "gram": jax.ShapeDtypeStruct((n, n), jnp.float32),
        "squared_norms": vector,
        "per_leaf_alignment": {"parameter": vector},
        "reference_losses": vector,
        "embeddings": rows,
        "logit_summaries": {"nuclear": vector, "projection": jax.ShapeDtypeStruct((n, 1024), jnp.float32)},
        "sources": whole,
        "valid": jax.ShapeDtypeStruct((n,), jnp.bool_),
        "preconditioned_alignment": vector,
        "validation_embeddings": rows,
    }
    return Signals(**{name: x for name, x in shapes.items() if name in rule.needs | {"valid"}})


def _program(rule: Rule, k: int) -> Callable[..., object]:
    def program(signals: Signals, rate: jax.Array, key: jax.Array) -> object:
        memory = None if rule.init is None else rule.init()
        return rule(signals._replace(memory=memory), k, learning_rate=rate, key=key)

    return program
