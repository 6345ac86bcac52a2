"""Numbers of a comparison as people read them."""

import math
from collections.abc import Mapping

from greats_jax.experiments.numbers import number
from greats_jax.experiments.statistics import Difference, Interval


def is_loss(metric: str) -> bool:
    """Whether a metric is a loss in nats per token, which is shown as a perplexity."""
    return metric.split("/")[-1].endswith("_loss")


def perplexity(loss: Interval) -> str:
    """A mean loss as a perplexity with its interval: 12.3 [11.9, 12.8]. It is the geometric mean of perplexities."""
    return with_limits(Interval(exponential(loss.mean), exponential(loss.low), exponential(loss.high), loss.n))


def with_limits(value: Interval) -> str:
    """12.3 [11.9, 12.8], or the mean alone where there is no interval."""
    if math.isnan(value.low) or math.isnan(value.high):
        return number(value.mean, 4)
    return f"{number(value.mean, 4)} [{number(value.low, 4)}, {number(value.high, 4)}]"


def relative(difference: Difference | None) -> str:
    """A difference of losses as that of perplexities in percent: -3.2 % [-5.0, -1.1], p 0.01."""
    if difference is None or not difference.n:
        return ""
    mean = f"{change(difference.mean)} %"
    if math.isnan(difference.low):
        return mean
    return f"{mean} [{change(difference.low)}, {change(difference.high)}], {probability(difference.p)}"


def change(difference: float) -> str:
    """A difference of losses as that of perplexities in percent, signed."""
    value = 100 * (exponential(difference) - 1)
    return f"{value:+,.0f}" if abs(value) >= 100 else f"{value:+.1f}"


def probability(p: float) -> str:
    """A p-value: p 0.03."""
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}" if p < 0.1 else f"p {p:.2f}"


def failures(reasons: Mapping[str, str]) -> list[str]:
    """Runs that failed, by name, with what they failed for; those of one reason in one line."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, (first, *others) in by_reason.items():
        more = f" and {len(others)} other{'s' * (len(others) > 1)}" if others else ""
        lines.append(f"{first}{more} failed: {reason}")
    return lines


def variants(described: Mapping[str, str]) -> list[str]:
    """What the methods are that have more than the rule they are called by, in one line if there are any."""
    named = [f"{name} stands for {what}" for name, what in described.items()]
    return [f"Of the methods, {'; '.join(named)}."] if named else []


def exponential(value: float) -> float:
    """exp, infinite where that overflows."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
