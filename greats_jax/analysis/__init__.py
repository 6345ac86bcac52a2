"""What selection can do for a model: how faithful its predictions are, and what it says of a whole pool.

Only the mathematics is imported here. What reads a configuration is in `taylor_run` and `score_table`.
"""

from greats_jax.analysis.correlation import pearson, spearman
from greats_jax.analysis.taylor import curvatures, hessian_times, inner, loss_along, predicted, unit_update

__all__ = ["curvatures", "hessian_times", "inner", "loss_along", "pearson", "predicted", "spearman", "unit_update"]
