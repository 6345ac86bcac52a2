"""The published rules, each a pure function of signals; importing this registers them.

Notation in their docstrings: g_i is the gradient of candidate i of n, l_i its loss, v the mean validation gradient, k
the number kept. Every rule leaves out a candidate that is not `valid` or whose loss or score is not finite.
"""

from greats_jax.selection.rules import baselines, greats, layer_wise, opus, partition_sel, rho_loss, sbert, uds

__all__ = ["baselines", "greats", "layer_wise", "opus", "partition_sel", "rho_loss", "sbert", "uds"]
