"""Controlled comparisons of selection methods, and what they found."""

from greats_jax.experiments.comparison import Ended, Watcher, run_comparison
from greats_jax.experiments.comparison_config import CONTROLS, ComparisonConfig, load_comparison
from greats_jax.experiments.comparison_plan import Plan, PlannedRun, plan_comparison
from greats_jax.experiments.curves import Curve, curves_of, read_curves
from greats_jax.experiments.outcomes import Outcome
from greats_jax.experiments.statistics import Difference, Interval, holm, interval, paired_difference

__all__ = [
    "CONTROLS",
    "ComparisonConfig",
    "Curve",
    "Difference",
    "Ended",
    "Interval",
    "Outcome",
    "Plan",
    "PlannedRun",
    "Watcher",
    "curves_of",
    "holm",
    "interval",
    "load_comparison",
    "paired_difference",
    "plan_comparison",
    "read_curves",
    "run_comparison",
]
