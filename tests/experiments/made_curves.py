"""Curves of a comparison that was never run, for what is computed from curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from greats_jax.experiments.curves import Curve


def made_curve(
    method: str,
    losses: Sequence[float] | np.ndarray,
    seed: int = 0,
    setting: str = "",
    every: int = 10,
    pace: float = 1.0,
    draws: int = 8,
    rule: str | None = None,
) -> Curve:
    """Evaluated every so many updates, each of which takes `pace` seconds and draws so many candidates.

    `rule` is the method's rule, where a comparison calls it by another name.
    """
    steps = np.arange(len(losses)) * every
    values = np.asarray(losses, np.float64)
    return Curve(
        setting=setting,
        method=method,
        seed=seed,
        steps=steps,
        seconds=steps * pace,
        candidates=steps * draws,
        metrics={"test_loss": values, "test_perplexity": np.exp(values), "validation_loss": values - 0.1},
        folder=Path(f"runs/{setting}-{method}-{seed}"),
        candidate_tokens=steps * draws * 5,
        trained_tokens=steps * draws * 2,
        draws=(rule or method) != "target_only",
    )
