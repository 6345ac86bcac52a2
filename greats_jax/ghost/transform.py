"""`value_and_per_example_grads`: the function transform of the package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from greats_jax.ghost.per_example import PerExampleGrads
from greats_jax.ghost.tracing import Request, trace

PyTree = Any


def value_and_per_example_grads(
    loss_fn: Callable[..., Any],
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    *,
    leaves: Callable[[str], bool] | None = None,
    instantiate_below: float = 0.5,
) -> Callable[..., Any]:
    """Transform a loss of one example into losses and factored gradients of a batch.

    The program of `vmap(value_and_grad(loss_fn))` is traced, and cut where each weight's gradient is born as an outer
    product: the operands are returned instead of the product, so nothing of the size of the parameters is formed per
    example. A leaf whose gradient is not born in a recognised way is materialised (that leaf alone) and is still exact;
    `PerExampleGrads.explain()` names it. A loss cannot mix examples (as batch statistics would): it sees only one.

    Args:
        loss_fn: `loss_fn(*others, example) -> scalar`, or `(scalar, aux)` with `has_aux`. Any JAX code.
        argnums: which positional arguments are parameters (not the last one, which is the batch).
        has_aux: whether the loss returns auxiliary outputs; they come back batched on axis 0.
        leaves: `leaves(path) -> bool` names the parameter leaves to differentiate, by key path such as
            `"['head']['kernel']"`; None for all. The others are constants, and the backward pass stops where only they
            are left. To contract some leaves of gradients that are complete, see `PerExampleGrads.only`.
        instantiate_below: keep an outer product instead of its operands when it has at most this fraction of their
            elements (0: always the operands). The result does not depend on it, memory and FLOPs do.

    Returns:
        `fn(*others, batch) -> (losses f32[n], PerExampleGrads)`, or `((losses, aux), PerExampleGrads)`. The last
        positional argument is a pytree batched on axis 0, the others are broadcast. Traceable under `jit`, `scan` and
        `vmap`. Cost: one forward and one backward without weight gradients, plus what the contractions ask for.

    Raises:
        ArgumentError: `argnums` names the batched argument, or batch leaves disagree on axis 0.
    """
    request = Request(loss_fn, argnums, has_aux, leaves, instantiate_below)

    @jax.jit
    def transformed(*args: PyTree) -> tuple[Any, PerExampleGrads]:
        traced = trace(request, args)
        value, results = traced.run(entry.value for entry in traced.entries)
        operands = tuple(entry.cut(results[entry.value]) for entry in traced.entries)
        return value, PerExampleGrads(operands, traced.leaves, traced.treedef, traced.n)

    return transformed
