"""A rule tried on shapes alone, so that a mistake in it shows before anything is loaded."""

from __future__ import annotations

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
    if "optimizer" in rule.needs:
        return  # its state looks different for every optimizer
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
    needed = Signals(**{name: x for name, x in shapes.items() if name in rule.needs | {"valid"}})

    def program(signals: Signals, rate: jax.Array, key: jax.Array) -> object:
        memory = None if rule.init is None else rule.init()
        return rule(signals._replace(memory=memory), k, learning_rate=rate, key=key)

    try:
        jax.eval_shape(program, needed, jnp.zeros(()), jax.random.key(0))
    except ArgumentError as error:
        raise ConfigError(f"method: {error}") from None
