"""The optax optimizer and learning-rate schedule that a configuration describes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from greats_jax.training.config import OptimizerConfig
from greats_jax.training.preconditioning import precondition


def warmup_steps(config: OptimizerConfig, steps: int) -> int:
    """Length of the warm-up: `warmup` is a fraction of `steps` when below 1, else a number of steps."""
    return math.ceil(config.warmup * steps) if config.warmup < 1 else min(round(config.warmup), steps)


def build_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by optimizer update (0 is the first).

    As in the published runs (and transformers' schedules) the rate is 0 at update 0 of a warm-up, the peak right after
    the warm-up, and would be 0 at update `steps`, one past the last.

    Args:
        config: Peak rate, shape and warm-up.
        steps: Optimizer updates of the run.
    """
    peak, warmup = config.learning_rate, warmup_steps(config, steps)
    rest = max(1, steps - warmup)
    if config.schedule == "linear":
        fall = optax.linear_schedule(peak, 0.0, rest)
    elif config.schedule == "cosine":
        fall = optax.cosine_decay_schedule(peak, rest)
    else:
        fall = optax.constant_schedule(peak)
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), fall], [warmup]) if warmup else fall


def build_rule(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The update rule: clipping, then the rule with decoupled weight decay.

    Args:
        config: The rule and its constants.
        schedule: Learning rate by optimizer update.
    """
    return optax.chain(
        optax.identity() if config.clip is None else optax.clip_by_global_norm(config.clip),
        _direction(config),
        optax.add_decayed_weights(config.weight_decay, mask=decayed) if config.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(schedule),
    )


def build_optimizer(config: OptimizerConfig, schedule: optax.Schedule, accumulate: int) -> optax.GradientTransformation:
    """`build_rule`, once every `accumulate` calls, whose gradients are averaged into one update."""
    rule = build_rule(config, schedule)
    if accumulate == 1:
        return rule
    return optax.MultiSteps(rule, every_k_schedule=accumulate).gradient_transformation()


def build_preconditioner(
    config: OptimizerConfig, schedule: optax.Schedule, accumulate: int
) -> Callable[[Any, Any, Any], Any]:
    """`preconditioner(opt_state, params, direction)`: the response of the rule, also between accumulated updates."""
    rule = build_rule(config, schedule)

    def respond(opt_state: Any, params: Any, direction: Any) -> Any:
        inner = opt_state if accumulate == 1 else opt_state.inner_opt_state
        return precondition(rule, inner, params, direction)

    return respond


def decayed(params: Any) -> Any:
    """Which parameters weight decay applies to: all but biases and the scales and shifts of norms, told by name.

    Args:
        params: A nested dictionary of arrays.

    Returns:
        The same tree with a bool for each array.
    """

    def decays(path: tuple, _: Any) -> bool:
        names = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        is_bias = names[-1].endswith("bias")
        is_norm = any("norm" in name or name.startswith("ln_") for name in names)
        return not (is_bias or is_norm)

    return jax.tree_util.tree_map_with_path(decays, params)


def _direction(config: OptimizerConfig) -> optax.GradientTransformation:
    if config.name == "adamw":
        return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    return optax.trace(decay=config.momentum) if config.momentum else optax.identity()
