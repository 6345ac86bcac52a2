"""What a report says of results: of seeds that diverged, of methods that draw nothing, of many scores."""

import json
import shutil
from pathlib import Path

import pytest

from greats_jax.experiments.report import as_text, build_report, results
from greats_jax.experiments.report.document import Fact, Report, Table, charts_of


def said(report: Report) -> str:
    return " ".join(as_text(report, 250).split())


def test_of_many_scores_it_is_said_which_are_not_drawn(runs, monkeypatch):
    monkeypatch.setattr(results, "_MOST_SCORES", 0)
    monkeypatch.setattr(results, "_FEWEST_SCORES", 0)
    report = build_report([runs])
    assert "test_accuracy-steps" not in [chart.name for chart in charts_of(report)]
    assert "Of 1 scores, 1 are not drawn" in said(report)


def test_equal_time_is_that_of_what_draws_from_the_pool(runs):
    assert "where the fastest of the methods that draw from the pool had ended" in said(build_report([runs]))


def as_comparison(folder: Path, runs: Path, asked: list[str], names: dict[str, str] | None = None) -> Path:
    """A comparison of runs whose folders are called METHOD-SEED, with other names for some methods."""
    shutil.copytree(runs, folder / "runs")
    listed = []
    for path in sorted((folder / "runs").iterdir()):
        method, _, seed = path.name.rpartition("-")
        name = (names or {}).get(method, method)
        listed.append({"name": path.name, "setting": "", "method": name, "seed": int(seed), "config": {}})
    methods = list(dict.fromkeys(one["method"] for one in listed))
    manifest = {"settings": [""], "methods": methods, "asked": asked, "target": "regular", "failed": {}, "runs": listed}
    (folder / "comparison.json").write_text(json.dumps(manifest))
    return folder


def lose(run: Path) -> None:
    """Take the finite losses from all but the first evaluation of a run."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["event"] == "evaluation" and record["step"]:
            record |= dict.fromkeys(("test_loss", "test_perplexity", "validation_loss", "validation_perplexity"))
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def raise_losses(run: Path, by: float) -> None:
    """Add something to the test loss of every evaluation of a run."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["event"] == "evaluation":
            record["test_loss"] += by
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_seeds_without_a_finite_loss_are_counted_and_their_method_is_not_best(runs, tmp_path):
    folder = as_comparison(tmp_path / "lost", runs, ["greats", "max_loss"])
    lose(folder / "runs" / "greats-1")
    report = build_report([folder])
    assert report.facts[0].name == "Test perplexity, max_loss"
    (table,) = (b for s in report.sections for b in s.blocks if isinstance(b, Table) and "equal updates" in b.head[1])
    cells = {row[0]: row for row in table.rows}
    assert cells["greats"][-1] == "2 (1 diverged)"
    assert cells["regular"][-1] == "3"
    assert table.best
    assert "greats" not in {table.rows[row][0] for row, _ in table.best}  # though it had least in two seeds
    assert "Seeds that diverged ended without a finite loss" in table.caption
    curve = next(chart for chart in charts_of(report) if chart.name == "test_loss-steps")
    assert [row[0] for row in curve.table.rows] == ["0", "4", "8", "12"]
    assert all(row[1] != "-" for row in curve.table.rows)


def test_the_best_is_marked_over_the_seeds_that_all_share(runs, tmp_path):
    folder = as_comparison(tmp_path / "hard", runs, ["greats", "max_loss"])
    raise_losses(folder / "runs" / "greats-2", 5.0)
    shutil.rmtree(folder / "runs" / "max_loss-2")
    report = build_report([folder])
    assert report.facts[0].name == "Test perplexity, greats"
    (table,) = (b for s in report.sections for b in s.blocks if isinstance(b, Table) and "equal updates" in b.head[1])
    assert "the best is marked over those that all of a setting share" in table.caption
    assert (0, 1) in table.best
    assert table.rows[0][0] == "greats"


def test_a_method_that_diverged_with_every_seed_is_told(runs, tmp_path):
    folder = as_comparison(tmp_path / "lost", runs, ["greats"])
    for seed in range(3):
        lose(folder / "runs" / f"greats-{seed}")
    report = build_report([folder])
    assert report.facts[0] == Fact("Test perplexity, greats", "-", "3 of 3 seeds diverged")
    assert "0 (3 diverged)" in said(report)
    alone = build_report([folder / "runs" / "greats-0"])
    assert alone.verdict.startswith("greats ended without a finite loss after 12 updates.")


def test_what_draws_no_candidates_selects_none_whatever_it_is_called(runs, make_run, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    for seed in range(3):
        make_run(tmp_path / "runs" / f"target_only-{seed}", "method=target_only", f"seed={seed}")
    report = build_report([as_comparison(tmp_path / "c", tmp_path / "runs", ["greats"], {"target_only": "target_big"})])
    (chart,) = (chart for chart in charts_of(report) if chart.name == "by-source")
    assert [key.name for key in chart.keys] == ["greats", "max_loss", "random_k"]
    assert "target_big" in said(report)


def test_bars_of_time_are_told_apart_by_setting_where_there_are_several(comparison, runs):
    figures = pytest.importorskip("matplotlib.figure")

    def labels(folder: Path) -> list[str]:
        axes = figures.Figure().subplots()
        next(chart for chart in charts_of(build_report([folder])) if chart.name == "time-whole").draw(axes)
        return [label.get_text() for label in axes.get_yticklabels()]

    assert labels(comparison) == ["greats (2)", "random_k (2)", "greats (3)", "random_k (3)"]
    assert labels(runs) == ["greats", "max_loss", "random_k", "regular"]
