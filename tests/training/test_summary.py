from types import SimpleNamespace

import numpy as np
import pytest

from greats_jax.cli.console import closing_table
from greats_jax.data import Example
from greats_jax.errors import DataError
from greats_jax.training.plots import plot_run
from greats_jax.training.setup import TaskData, check_tokens
from greats_jax.training.summary import source_shares, summarize, time_split


def step(number: int, loss: float | None, seconds: float = 1.0, compiled: bool = False) -> dict:
    return {
        "event": "step", "step": number, "loss": loss, "candidate_loss": 3.0, "seconds": seconds,
        "seconds_waiting": seconds / 10, "seconds_selecting": None if compiled else seconds / 4,
        "seconds_picking": None if compiled else seconds / 20,
        "tokens_per_second": 100 / seconds, "examples_per_second": 8 / seconds, "compiled": compiled,
        "skipped": int(loss is None), "rejected_candidates": 2 * (loss is None), "rejected_validation": 0,
    }  # fmt: skip


def evaluation(number: int, perplexity: float) -> dict:
    return {
        "event": "evaluation",
        "step": number,
        "validation_perplexity": perplexity,
        "test_perplexity": 2 * perplexity,
        "seconds": 0.5,
    }


SELECTION = {
    "candidates": ["a1", "a2", "b1", "b2"],
    "sources": ["a", "a", "b", "b"],
    "chosen": ["b2", "a1", "a1"],
    "weights": [1.0, 1.0, 0.0],
}


def test_shares_count_only_examples_with_weight():
    shares = source_shares([SELECTION, SELECTION | {"chosen": ["b1"], "weights": [0.5]}])
    assert shares["a"] == {"candidates": 4, "chosen": 1, "candidate_share": 0.5, "chosen_share": pytest.approx(1 / 3)}
    assert shares["b"]["chosen"] == 2
    assert list(shares) == ["b", "a"]


def test_a_source_never_chosen_is_still_listed():
    shares = source_shares([SELECTION | {"chosen": ["a1"], "weights": [1.0]}])
    assert shares["b"]["chosen_share"] == 0.0


def test_summary_of_a_run():
    metrics = [
        evaluation(0, 9.0), step(1, 4.0, seconds=50.0, compiled=True), step(2, None), step(3, 3.0, seconds=2.0),
        evaluation(3, 5.0), step(4, 2.0, seconds=4.0), evaluation(4, 4.0),
    ]  # fmt: skip
    summary = summarize(metrics, [SELECTION])
    assert (summary["skipped"], summary["rejected_candidates"], summary["rejected_validation"]) == (1, 2, 0)
    assert summary["steps"] == 4
    assert summary["before"]["validation_perplexity"] == 9.0
    assert summary["after"]["test_perplexity"] == 8.0
    assert (summary["first_loss"], summary["last_loss"]) == (4.0, 2.0)
    # The median of the three updates that compiled nothing.
    assert summary["throughput"] == {
        "seconds": 2.0, "seconds_selecting": 0.5, "tokens_per_second": 50.0, "examples_per_second": 4.0,
    }  # fmt: skip
    assert summary["seconds"] == 57.0
    # The compiled step would have taken 2 seconds, as the median of the others, and waited for 5.
    assert summary["time"] == pytest.approx(
        {"data": 2.7, "scoring": 1.4, "selection": 0.35, "update": 4.55, "evaluation": 1.5, "compiling": 48.0}
    )
    assert sum(summary["time"].values()) == pytest.approx(57.0 + 1.5)


def test_the_time_of_an_older_run_is_split_as_far_as_it_was_recorded():
    record = {
        name: x for name, x in step(1, 2.0, seconds=4.0).items() if name not in ("seconds_waiting", "seconds_picking")
    }
    assert time_split([record]) == {
        "data": 0.0, "scoring": 1.0, "selection": 0.0, "update": 3.0, "evaluation": 0.0, "compiling": 0.0,
    }  # fmt: skip


def test_a_run_stopped_before_its_first_update_has_a_summary():
    summary = summarize([evaluation(0, 9.0)], [])
    assert summary["steps"] == 0
    assert summary["after"] is None
    assert summary["sources"] == {}
    assert summary["throughput"] == {}


def test_curves_are_drawn_also_with_gaps(tmp_path):
    pytest.importorskip("matplotlib")
    metrics = [evaluation(0, 9.0), step(1, 4.0), step(2, None), {**evaluation(2, 5.0), "test_perplexity": None}]
    paths = plot_run(metrics, source_shares([SELECTION]), tmp_path / "curves")
    assert sorted(path.name for path in paths) == ["loss.png", "perplexity.png", "sources.png"]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_source_may_be_called_by_a_formula_that_is_none(tmp_path):
    pytest.importorskip("matplotlib")
    shares = {r"$\nothing_{$": {"chosen_share": 0.5, "candidate_share": 0.4}}
    assert len(plot_run([step(1, 4.0), evaluation(1, 5.0)], shares, tmp_path)) == 3


def test_the_closing_table_says_what_was_skipped():
    summary = {"steps": 3, "before": None, "after": None, "sources": {}, "throughput": {}, "seconds": 1.0}
    assert "warning" not in closing_table(summary)
    assert "every update was skipped" in closing_table({**summary, "skipped": 3})
    assert "2 of 3 update" in closing_table({**summary, "skipped": 2})
    assert "5 candidates were left out" in closing_table({**summary, "rejected_candidates": 5})


def test_an_example_longer_than_the_model_is_refused():
    example = Example("a", "s", np.zeros(9, np.int32), np.ones(9, bool))
    pool = SimpleNamespace(examples=(example,))
    none = np.zeros(0, np.int32)
    data = TaskData(pool, (example,), (), ("task",), np.zeros(1, np.int32), none)  # pyright: ignore[reportArgumentType]
    check_tokens(data, 9, 1)
    with pytest.raises(DataError, match=r"data\.max_length=8"):
        check_tokens(data, 8, 1)


def test_a_token_that_the_model_does_not_know_is_refused():
    example = Example("a", "s", np.full(3, 512, np.int32), np.ones(3, bool))
    pool = SimpleNamespace(examples=(example,))
    none = np.zeros(0, np.int32)
    data = TaskData(pool, (example,), (), ("task",), np.zeros(1, np.int32), none)  # pyright: ignore[reportArgumentType]
    check_tokens(data, 9, 513)
    with pytest.raises(DataError, match=r"token 512.*0 to 511.*model\.tokenizer"):
        check_tokens(data, 9, 512)
