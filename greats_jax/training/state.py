"""Explicit training state of the selective step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
PyTree = Any


class TrainState(NamedTuple):
    """Everything the step changes; a pytree whose structure stays the same from step to step.

    Attributes:
        params: trainable pytree (integer and boolean leaves are constants).
        opt_state: optimizer state of the floating leaves.
        step: i32[], calls of the step so far.
        key: PRNG key; the key of a step is `fold_in(key, step)`.
        direction: cached validation gradient like `params`, NaN before the first refresh; None when not reserved.
        memory: memory of a selection rule that keeps some, else None; a state created without it gets it in the first
            step.
    """

    params: PyTree
    opt_state: PyTree
    step: Array
    key: Array
    direction: PyTree = None
    memory: Any = None

    @classmethod
    def create(
        cls,
        params: PyTree,
        optimizer: optax.GradientTransformation,
        seed: int = 0,
        *,
        reserve_direction: bool = True,
        memory: Any = None,
    ) -> TrainState:
        """Start from parameters, which are copied (the step donates its state).

        Args:
            params: trainable pytree.
            optimizer: the optimizer the step will use.
            seed: of the rules that draw at random.
            reserve_direction: keep room for a cached validation direction (one copy of the floating parameters), which
                `validation="cached"` needs; False saves that memory.
            memory: what the rule begins with, as in `memory=get("uds").init()`. Needed where the structure must stay
                the same from the first step on, as inside `lax.scan`; elsewhere it saves one compilation.
        """
        params, memory = jax.tree.map(lambda x: jnp.array(x, copy=True), (params, memory))
        trained = floating(params)
        direction = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), trained) if reserve_direction else None
        # Some optimizers start with one array in several places; a donated state may hold each buffer only once.
        opt_state = jax.tree.map(lambda x: jnp.array(x, copy=True), optimizer.init(trained))
        return cls(params, opt_state, jnp.zeros((), jnp.int32), jax.random.key(seed), direction, memory)


def floating(params: PyTree) -> PyTree:
    """The floating leaves of a pytree; the others become None (an empty subtree to JAX and optax)."""
    return jax.tree.map(lambda x: x if jnp.issubdtype(jnp.result_type(x), jnp.floating) else None, params)


def with_floating(params: PyTree, trained: PyTree) -> PyTree:
    """`params` with its floating leaves replaced by those of `trained`."""
    new = iter(jax.tree.leaves(trained))
    return jax.tree.map(lambda x: next(new) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else x, params)


def learning_rate_in(opt_state: PyTree) -> Array | None:
    """The learning rate that `optax.inject_hyperparams` keeps in an optimizer state, however deeply wrapped."""

    def holds(node: Any) -> bool:
        return isinstance(node, tuple) and "learning_rate" in (getattr(node, "hyperparams", None) or {})

    found = [node for node in jax.tree.leaves(opt_state, is_leaf=holds) if holds(node)]
    return found[0].hyperparams["learning_rate"] if found else None
