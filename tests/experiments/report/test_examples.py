import dataclasses
import math

import numpy as np

from greats_jax.data import SourceConfig
from greats_jax.experiments.report.examples import read_texts, standings
from greats_jax.experiments.report.picks import candidacies


def batch(step: int, ids: str, chosen: str, scores=None) -> dict:
    return {
        "step": step, "micro_batch": 0, "candidates": list(ids), "sources": ["s"] * len(ids),
        "scores": scores or [None] * len(ids), "losses": [1.0] * len(ids), "chosen": list(chosen),
        "weights": [1.0] * len(chosen),
    }  # fmt: skip


def test_one_lucky_candidacy_is_not_ahead_of_many():
    often = [batch(step, "abc", "a") for step in range(1, 10)]
    found = standings([candidacies([*often, batch(10, "xyz", "x")])])
    assert [one.id for one in found[:2]] == ["a", "x"]
    assert (found[0].considered, found[0].chosen, found[0].source) == (9, 9, "s")
    assert {one.id for one in found[-2:]} == {"b", "c"}
    assert math.isnan(found[0].score)
    assert found[0].loss == 1


def test_equal_rates_go_by_the_mean_score():
    found = standings([candidacies([batch(1, "abcd", "a", [4.0, 1.0, 3.0, None])])])
    assert [one.id for one in found[:2]] == ["a", "c"]
    assert found[1].score == 3


def test_runs_are_added_up():
    one, other = candidacies([batch(1, "ab", "a")]), candidacies([batch(1, "bc", "b"), batch(2, "ab", "b")])
    found = {standing.id: standing for standing in standings([one, other])}
    assert (found["b"].considered, found["b"].chosen) == (3, 2)
    assert (found["a"].considered, found["a"].chosen) == (2, 1)
    assert found["b"].rate > found["a"].rate > found["c"].rate
    assert found["b"].rate == (2 + np.mean([0.5, 0.5])) / 4


def test_texts_come_from_the_pool_built_again(run_config, tmp_path):
    texts = read_texts(run_config(tmp_path / "run"))
    assert texts.missing == ""
    assert len(texts.lengths) == 80
    (prompt, learned), (answer, also) = texts.of("copy-1")
    assert prompt.startswith("say")
    assert prompt.endswith(answer)  # what the source copy does
    assert (learned, also) == (False, True)
    assert texts.of("nobody") == ()


def test_data_that_are_gone_are_told(run_config, tmp_path):
    config = run_config(tmp_path / "run")
    gone = dataclasses.replace(config.data, sources=(SourceConfig(str(tmp_path / "gone.jsonl")),))
    texts = read_texts(dataclasses.replace(config, data=gone))
    assert "gone.jsonl" in texts.missing
    assert texts.of("copy-1") == ()
