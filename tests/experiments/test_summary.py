"""Tables of a comparison: what their cells say where there is no number."""

import math

from made_curves import made_curve

from greats_jax.experiments.outcomes import outcomes
from greats_jax.experiments.summary import tables


def test_seeds_that_diverged_and_seeds_with_nothing_to_reach_are_shown():
    curves = [made_curve("regular", [4.0, 5.0 if seed else 3.5], seed=seed) for seed in range(3)]
    curves += [made_curve("greats", [4.0, math.nan if seed else 3.0], seed=seed) for seed in range(3)]
    curves += [made_curve("max_loss", [4.0, math.inf], seed=1)]
    (_, (head, *rows)), *_ = tables(outcomes(curves))
    shown = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert [shown[name]["seeds"] for name in shown] == ["3", "1 (2 diverged)", "0 (1 diverged)"]
    assert [shown[name]["reached regular"] for name in shown] == ["1 of 1", "1 of 1", "-"]
