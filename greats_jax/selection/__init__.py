"""Selection objectives: pure functions from signals about candidates to a selection.

Useful on its own: bring your own signals, model and training loop.
"""

from greats_jax.selection import rules as _rules  # noqa: F401 - registers the rules
from greats_jax.selection.picking import greedy, top_k
from greats_jax.selection.registry import Rule, get, names, register
from greats_jax.selection.signals import Selection, Signals, candidate_count, eligible

__all__ = ["Rule", "Selection", "Signals", "candidate_count", "eligible", "get", "greedy", "names", "register", "top_k"]
