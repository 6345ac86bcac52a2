"""Matrix-product FLOPs of a step, counted from its traced program, and the share of them that selecting costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core as jex

PyTree = Any


def matmul_flops(function: Callable[..., Any], *args: PyTree, branch_share: float = 1.0) -> float:
    """FLOPs of all matrix products and convolutions in one call, two per multiply-add; nothing is run or compiled.

    Args:
        function: anything JAX can trace.
        args: arguments, or `jax.ShapeDtypeStruct`s in their place.
        branch_share: how often the dearer branch of a conditional is taken.

    Returns:
        The count. A scan counts with all of its iterations; a `while` loop, whose number of turns is not known, with
        none: the step has one that only turns when a gradient is not finite.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr, branch_share)


def selection_share(
    step: Callable[..., Any], plain_step: Callable[..., Any], *args: PyTree, refresh_every: int = 1
) -> float:
    """The share of a selective step's FLOPs that a plain step on the kept examples would not need, in [0, 1).

    Args:
        step: the selective step.
        plain_step: a step of the rule `regular` with the same `keep`.
        args: arguments of both.
        refresh_every: R of the cached validation direction, whose cost comes once in R steps.
    """
    whole = matmul_flops(step, *args, branch_share=1 / refresh_every)
    return max(0.0, 1.0 - matmul_flops(plain_step, *args) / whole) if whole else 0.0


def _count(jaxpr: jex.Jaxpr, branch_share: float) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            total += _dot_flops(eqn)
        elif eqn.primitive.name == "conv_general_dilated":
            total += _convolution_flops(eqn)
        elif eqn.primitive.name == "cond":
            branches = sorted(_count(branch.jaxpr, branch_share) for branch in eqn.params["branches"])
            total += branches[0] + branch_share * (branches[-1] - branches[0])
        elif eqn.primitive.name != "while":
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            total += times * sum(_count(inner, branch_share) for inner in jex.jaxprs_in_params(eqn.params))
    return total


def _dot_flops(eqn: jex.JaxprEqn) -> float:
    (contract, _), _ = eqn.params["dimension_numbers"]
    left, out = (_shape(v) for v in (eqn.invars[0], eqn.outvars[0]))
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contract)


def _convolution_flops(eqn: jex.JaxprEqn) -> float:
    kernel, out = (_shape(v) for v in (eqn.invars[1], eqn.outvars[0]))
    out_channels = eqn.params["dimension_numbers"].rhs_spec[0]
    return 2.0 * math.prod(out) * math.prod(kernel) / kernel[out_channels]


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
