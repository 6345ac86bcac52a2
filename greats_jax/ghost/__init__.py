"""Per-example gradients as factors: inner products, norms and sums without forming a gradient.

Useful on its own: pure JAX, for a loss of any library, with no knowledge of models or of selection.
"""

from greats_jax.ghost.explanation import Explanation, LeafExplanation
from greats_jax.ghost.layers import LayerContractions
from greats_jax.ghost.per_example import PerExampleGrads
from greats_jax.ghost.spread import Spread
from greats_jax.ghost.streaming import value_and_contraction
from greats_jax.ghost.transform import value_and_per_example_grads

__all__ = [
    "Explanation",
    "LayerContractions",
    "LeafExplanation",
    "PerExampleGrads",
    "Spread",
    "value_and_contraction",
    "value_and_per_example_grads",
]
