"""What `greats compare` shows while it runs, from events that no run has made."""

import io
from pathlib import Path

import pytest
from tiny import tiny_config

from greats_jax.cli.compare import ComparisonView
from greats_jax.experiments.comparison_config import load_comparison
from greats_jax.experiments.comparison_plan import Plan, plan_comparison
from greats_jax.training.events import Evaluated, Noticed, Started, Stepped


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def plan(tiny_model, tiny_data, tmp_path) -> Plan:
    """Three methods with two seeds, four updates each."""
    (tmp_path / "tiny.yaml").write_text(tiny_config(tiny_model, tiny_data, tmp_path / "run"))
    (tmp_path / "x.yaml").write_text(
        f"train: {tmp_path}/tiny.yaml\nset: {{steps: 4}}\nmethods: [greats]\ncontrols: [regular, random_k]\n"
        f"seeds: 2\noutput: {tmp_path}/out\n"
    )
    return plan_comparison(load_comparison(tmp_path / "x.yaml"))


def show(view: ComparisonView, plan: Plan, number: int, failure: str | None = None, done: int = 0) -> None:
    """One run of four updates, or of none if it fails."""
    run = plan.runs[number]
    tracker = view.run_begun(run)
    if failure is None:
        tracker.record(Started(run.config, Path("x"), 4, done, 1, 1, 1, ("a",), {}, 1, 1))
        tracker.record(Noticed("compiling the step for rows of 8 tokens"))
        if not done:
            tracker.record(Evaluated(0, {"validation_perplexity": 9.0, "test_perplexity": 8.5}))
        for step in range(done + 1, 5):
            tracker.record(Stepped(step, {}))
        tracker.record(Evaluated(4, {"validation_perplexity": 3.0, "test_perplexity": 3.25}))
    view.run_ended(run, failure)


def test_without_a_terminal_each_run_has_a_line(plan):
    stream = io.StringIO()
    view = ComparisonView(stream)
    view.begun(plan, 1)
    show(view, plan, 1)
    show(view, plan, 2, "data.sources: gone")
    view.close()
    lines = stream.getvalue().strip().split("\n")
    assert lines[0] == f"{plan.folder}: 3 methods x 2 seeds = 6 runs; 1 have finished before"
    assert lines[1].startswith("[2/6] regular-0: test perplexity 8.5 -> 3.25 in 0:00; 0:0")
    assert lines[2].startswith("random_k-0: failed after 0:00: data.sources: gone")
    assert len(lines) == 3  # that something compiles is no news in the thirtieth run


def test_a_terminal_has_one_bar_over_all_updates(plan):
    stream = Terminal()
    view = ComparisonView(stream)
    view.begun(plan, 1)
    show(view, plan, 1, done=2)  # gone on with
    show(view, plan, 2, "data.sources: gone")
    for number in (3, 4, 5):
        show(view, plan, number)
    view.close()
    shown = stream.getvalue()
    bars = [part for part in shown.replace("\n", "\r").split("\r") if "%|" in part]
    assert "24/24" in bars[-1]
    assert "ppl 3" in bars[-1]
    assert any("random_k-1 update" in bar or "random_k-1 loading" in bar for bar in bars)
    assert "random_k-0: failed after" in shown
    assert "regular-0: test perplexity 3.25 in" in shown  # what it was at first was seen by an earlier call


def test_notices_name_the_first_run_that_gave_them(plan):
    stream = io.StringIO()
    view = ComparisonView(stream)
    view.begun(plan, 0)
    for run in plan.runs[:2]:
        view.run_begun(run).record(Noticed("12 questions are too long"))
    assert "greats-0: 12 questions are too long\n" in stream.getvalue()
    assert stream.getvalue().count("too long") == 1
