"""Selection objectives: pure functions from signals about candidates to a selection.

Useful on its own: bring your own signals, model and training loop.
"""

from greats_jax.selection import rules as _rules  # noqa: F401 - registers the rules
from greats_jax.selection.expressions import get
from greats_jax.selection.groups import in_groups
from greats_jax.selection.picking import draw, greedy, greedy_within, standardised, top_k
from greats_jax.selection.registry import names, register, wrapper, wrapper_names
from greats_jax.selection.rule import Rule, adjusted, composed
from greats_jax.selection.signals import Selection, Signals, candidate_count, eligible, present
from greats_jax.selection.wrappers import above, diverse, normalised, quota, sampled, soft

__all__ = [
    "Rule",
    "Selection",
    "Signals",
    "above",
    "adjusted",
    "candidate_count",
    "composed",
    "diverse",
    "draw",
    "eligible",
    "get",
    "greedy",
    "greedy_within",
    "in_groups",
    "names",
    "normalised",
    "present",
    "quota",
    "register",
    "sampled",
    "soft",
    "standardised",
    "top_k",
    "wrapper",
    "wrapper_names",
]
