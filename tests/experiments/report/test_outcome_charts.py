"""Pictures of what methods came to, from curves that are made up."""

from pathlib import Path

import numpy as np
import pytest

from greats_jax.experiments.curves import Curve
from greats_jax.experiments.outcomes import outcomes
from greats_jax.experiments.report.curve_charts import curve_chart
from greats_jax.experiments.report.document import Chart
from greats_jax.experiments.report.outcome_charts import difference_chart, names_of_settings, setting_chart
from greats_jax.experiments.report.styles import styles_of_methods


def curves(ends: dict[str, float], seeds: int = 3, not_drawing: str = "target_only") -> list[Curve]:
    """One setting, in which every method goes from 3 nats in a straight line to its end."""
    rng = np.random.default_rng(0)
    steps = np.array([0, 5, 10])
    return [
        Curve(
            "", method, seed, steps, steps * 0.5, steps * 8,
            {"test_loss": np.linspace(3.0, end + 0.005 * rng.standard_normal(), 3)},
            Path(method), steps * 80, steps * 40, method != not_drawing,
        )
        for method, end in ends.items()
        for seed in range(seeds)
    ]  # fmt: skip


def drawn(chart: Chart | None):
    """The axes of a chart."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    assert chart is not None
    chart.draw(axes)
    return axes


CLOSE = {"greats": 2.0, "random_k": 2.05, "regular": 2.06, "max_loss": 2.08}


def test_a_method_that_is_far_off_does_not_hide_the_others():
    chart = difference_chart(outcomes(curves({**CLOSE, "target_only": 5.3})), "random_k")
    axes = drawn(chart)
    left, right = axes.get_xlim()
    assert -10 < left < -5
    assert 3 < right < 10
    said = [text.get_text() for text in axes.texts]
    assert len(said) == 2  # at equal updates and in equal time
    assert all(text.startswith("+2,") and text.endswith(" %") for text in said)
    assert chart is not None
    assert chart.says.endswith("Beyond the picture: target_only.")


def test_what_is_not_far_off_is_drawn_where_it_is():
    axes = drawn(difference_chart(outcomes(curves({**CLOSE, "greats": 1.5, "max_loss": 2.15})), "random_k"))
    assert not axes.texts
    left, right = axes.get_xlim()
    assert left < -42  # a gain is never cut off, however large
    assert 10 < right < 20


def test_a_loss_that_overflows_is_at_the_edge():
    axes = drawn(difference_chart(outcomes(curves({**CLOSE, "max_loss": 2000.0})), "random_k"))
    assert axes.get_xlim()[1] < 10
    assert "+inf %" in [text.get_text() for text in axes.texts]


def test_what_draws_no_candidates_is_known_by_its_rule():
    own = curves({**CLOSE, "target_big": 2.5}, not_drawing="target_big")
    chart = curve_chart(own, "test_loss", "candidates", styles_of_methods([*CLOSE, "target_big"]))
    assert chart is not None
    assert [key.name for key in chart.keys] == list(CLOSE)


def test_a_curve_far_above_does_not_hide_the_others():
    own = curves({**CLOSE, "target_only": 6.0})
    styles = styles_of_methods([*CLOSE, "target_only"])
    axes = drawn(curve_chart(own, "test_loss", "steps", styles))
    low, high = axes.get_ylim()
    assert 6.5 < low < np.exp(2.0)
    assert np.exp(3.0) < high < 30
    (text,) = axes.texts
    assert text.get_text().startswith("above: target_only to 40")
    near = drawn(curve_chart(curves({**CLOSE, "target_only": 3.4}), "test_loss", "steps", styles))
    assert near.get_ylim()[1] > np.exp(3.4)
    assert not near.texts


def test_of_two_methods_none_is_cut_off():
    axes = drawn(setting_chart(outcomes(curves({"greats": 2.0, "regular": 5.0}))))
    assert axes.get_ylim()[1] > np.exp(5.0)
    assert not axes.texts


def test_settings_share_the_name_of_their_key():
    assert names_of_settings(["a.b=1", "a.b=x"]) == ("a.b", {"a.b=1": "1", "a.b=x": "x"})
    assert names_of_settings(["small", "large"]) == ("", {"small": "small", "large": "large"})
    assert names_of_settings(["small", "b=2"])[0] == ""
