"""A comparison of tiny runs: begun, stopped, gone on with, grown, refused; what is in its tables."""

import csv
import dataclasses

import jax
import pyarrow.parquet as pq
import pytest
import yaml
from compared import METHODS, Made, Watching, write_comparison
from jax.experimental.compilation_cache import compilation_cache
from runs import without_clock

from greats_jax.cli import main
from greats_jax.errors import ConfigError, GreatsError, RunError
from greats_jax.experiments.comparison import Ended, compiled_programs_in, run_comparison
from greats_jax.experiments.comparison_config import load_comparison
from greats_jax.experiments.comparison_plan import plan_comparison
from greats_jax.experiments.curves import curve_of, read_curves
from greats_jax.experiments.manifest import Manifest, check_grown
from greats_jax.experiments.outcomes import outcomes
from greats_jax.experiments.report.members import gather
from greats_jax.training.jsonl import read_json_lines
from greats_jax.training.result import RunResult
from greats_jax.training.trainer import Trainer


def test_a_comparison_that_is_stopped_goes_on(made):
    ended, watcher = made.stopped
    assert ended == Ended(finished=1, failed={}, stopped=True)
    assert watcher.told == ["begun after 0 of 4", "max_loss-0 begun", "max_loss-0 finished", "random_k-0 begun"]
    assert made.after_stop == {"max_loss-0": True, "random_k-0": False}
    ended, watcher = made.ended
    assert ended == Ended(finished=4, failed={}, stopped=False)
    assert watcher.told[:3] == ["begun after 1 of 4", "random_k-0 begun", "random_k-0 finished"]
    assert "max_loss-0 begun" not in watcher.told


@pytest.mark.slow
def test_what_was_stopped_is_as_if_it_had_not_been(made, tmp_path):
    run = next(run for run in made.plan().runs if run.name == "random_k-0")
    whole = Trainer(dataclasses.replace(run.config, output=str(tmp_path / "whole"))).fit()
    of_comparison = RunResult.load(run.folder)
    clocks = {"seconds", "seconds_waiting", "seconds_scoring", "seconds_picking"}
    mine, its = (
        [{k: v for k, v in record.items() if k not in clocks} for record in without_clock(one.metrics)]
        for one in (of_comparison, whole)
    )
    assert mine == its
    assert of_comparison.selections == whole.selections


@pytest.mark.slow
def test_runs_that_share_programs_are_as_if_each_were_alone(made, tmp_path):
    """The last run used the data, weights and compiled steps of those before it."""
    run = next(run for run in made.plan().runs if run.name == "random_k-1")
    alone = Trainer(dataclasses.replace(run.config, output=str(tmp_path / "alone"))).fit()
    assert RunResult.load(run.folder).selections == alone.selections
    assert RunResult.load(run.folder).summary["after"]["test_loss"] == alone.summary["after"]["test_loss"]


def test_run_folders_keep_records_and_no_weights(made):
    for run in made.plan().runs:
        names = {path.name for path in run.folder.iterdir()}
        assert {"config.yaml", "metrics.jsonl", "selections.jsonl", "summary.json"} <= names
        assert not names & {"adapter", "checkpoints"}


def test_what_is_finished_is_not_done_again(made):
    before = {path: path.stat().st_mtime_ns for path in made.plan().folder.glob("runs/*/*")}
    ended, watcher = made.run()
    assert ended.finished == 4
    assert watcher.told == ["begun after 4 of 4"]
    assert before == {path: path.stat().st_mtime_ns for path in made.plan().folder.glob("runs/*/*")}


def test_what_a_killed_process_had_not_come_to_is_made_up_for(copied):
    """The table of a run that had just ended, its weights, and the reason for which it had failed before."""
    folder = copied.plan().folder
    for name in ("results.parquet", "results.csv"):
        (folder / name).unlink()
    (folder / "runs" / "random_k-1" / "adapter").mkdir()
    manifest = Manifest.load(folder)
    manifest._replace(failed={"random_k-1": "disk full"}).write()
    ended, _ = copied.run()
    assert ended == Ended(finished=4, failed={}, stopped=False)
    assert Manifest.load(folder).failed == {}
    assert pq.read_table(folder / "results.parquet").num_rows == 4 * 3
    assert not (folder / "runs" / "random_k-1" / "adapter").exists()


def test_a_folder_whose_manifest_was_never_whole_is_used(made, tmp_path):
    (tmp_path / ".comparison.json.new").write_text("{")
    ended = run_comparison(made.plan(f"output={tmp_path}"), Watching(), lambda: True)
    assert ended == Ended(finished=0, failed={}, stopped=True)
    assert Manifest.load(tmp_path).methods == METHODS


def test_the_table_is_tidy_and_the_same_in_both_files(made):
    folder = made.plan().folder
    table = pq.read_table(folder / "results.parquet").to_pylist()
    with (folder / "results.csv").open() as file:
        text = list(csv.DictReader(file))
    assert len(table) == len(text) == 4 * 3  # before, at update 2, at update 4
    assert [row["method"] for row in table[:3]] == ["max_loss"] * 3
    first, last = table[0], table[2]
    assert (first["step"], first["seconds"], first["candidates"], first["trained_tokens"]) == (0, 0.0, 0, 0)
    assert (last["step"], last["candidates"]) == (4, 4 * 6)
    records = read_json_lines(folder / last["folder"] / "metrics.jsonl")
    assert last["test_loss"] == records[-1]["test_loss"]
    steps = [record for record in records if record["event"] == "step"]
    assert last["candidate_tokens"] == steps[-1]["candidate_tokens"]
    assert last["trained_tokens"] == steps[-1]["trained_tokens"]
    for row, cells in zip(table, text, strict=True):
        assert row == {name: type(row[name])(cells[name]) for name in row}


def test_a_compiled_update_counts_as_the_median_of_the_others(made):
    run = RunResult.load(made.plan().runs[0].folder)
    steps = [record for record in run.metrics if record["event"] == "step"]
    usual = sorted(record["seconds"] for record in steps if not record["compiled"])
    (curve, *_) = read_curves(made.plan().folder)
    assert sum(record["compiled"] for record in steps) == 1
    assert curve.seconds[-1] == pytest.approx(usual[1] + sum(usual))


def test_what_draws_no_candidates_is_known_by_its_rule(made):
    run = RunResult.load(made.plan().runs[0].folder)
    own = dataclasses.replace(run, config=dataclasses.replace(run.config, method="target_only"))
    assert [curve_of(one, "", "any name", 0).draws for one in (run, own)] == [True, False]


def test_outcomes_can_be_made_of_the_folder_wherever_it_is(copied):
    found = outcomes(read_curves(copied.plan().folder))
    assert [outcome.method for outcome in found] == list(METHODS)
    assert all(outcome.n == 2 for outcome in found)


@pytest.mark.slow
def test_a_comparison_may_grow(copied):
    ended, watcher = copied.run("seeds=0,1,2", "set.checkpoint.keep_last=1")
    assert [line.split()[0] for line in watcher.told if line.endswith("begun")] == ["max_loss-2", "random_k-2"]
    assert ended.finished == 6


@pytest.mark.parametrize(
    "more", ["methods=max_loss,uds", "controls=random_k,regular", "seeds=0,1,2", "target=max_loss"]
)
def test_it_may_have_more_runs_and_another_target(made, more):
    new = Manifest.of(made.plan(more))
    check_grown(Manifest.load(made.plan().folder), new)
    of_seed = [run.method for run in new.runs if run.seed == 0]
    assert of_seed == list(new.methods)


@pytest.mark.parametrize(
    ("override", "notes"),
    [
        ("set.steps=5", ["steps: 4 -> 5 (4 runs)"]),
        ("seeds=1", ["max_loss-1: no longer in the comparison", "random_k-1: no longer in the comparison"]),
    ],
)
def test_another_comparison_is_refused_with_what_differs(made, override, notes):
    with pytest.raises(ConfigError, match="was begun as another one; it may get more methods, seeds") as refused:
        made.run(override)
    assert refused.value.__notes__ == notes


def test_a_folder_with_something_else_is_refused(made, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="there is something else here; choose another folder"):
        made.run(f"output={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_that_fails_is_noted_and_the_others_go_on(tiny_model, tiny_data, tmp_path, capsys):
    broken = {"name": "broken", "method": "rho_loss", "set": {"reference.losses": str(tmp_path / "none.parquet")}}
    path = write_comparison(tiny_model, tiny_data, tmp_path, methods=[broken], controls=["random_k"], seeds=1,
                            target="random_k")  # fmt: skip
    assert main(["compare", str(path)]) == 1
    told = capsys.readouterr()
    assert "broken-0: failed after" in told.err
    assert "greats: broken-0 failed: reference.losses: " in told.err
    assert "[2/2] random_k-0: test perplexity" in told.err
    assert "broken-0 failed: reference.losses" in (tmp_path / "out" / "summary.md").read_text()
    assert "None" not in told.out
    (run,) = [run for run in plan_comparison(load_comparison(path)).runs if run.method == "broken"]
    assert not run.folder.exists()


def test_data_that_cannot_be_used_are_told_before_the_first_run(tiny_model, tiny_data, tmp_path):
    vary = {"key": "task.fraction", "values": [0.2, 0.9999]}
    own = {"task.name": "holdout", "steps": 4}
    made, watcher = Made(write_comparison(tiny_model, tiny_data, tmp_path, vary=vary, set=own)), Watching()
    with pytest.raises(GreatsError) as refused:
        made.run(watcher=watcher)
    assert refused.value.__notes__ == ["met first in the runs of fraction=0.9999; none has been begun"]
    assert not watcher.told
    mended = made.plan("vary.values=0.2,0.3")  # in the same folder
    assert run_comparison(mended, Watching(), lambda: True).stopped


def test_the_command_shows_tables_verdict_and_files(made, capsys):
    assert main(["compare", str(made.file)]) == 0
    told = capsys.readouterr()
    lines = told.out.strip().split("\n")
    assert lines[0].split()[:3] == ["method", "equal", "updates"]
    assert [line.split()[0] for line in lines[1:3]] == list(METHODS)
    assert any("2 seeds cannot tell it from choosing at random" in line for line in lines)
    folder = made.plan().folder
    for name in ("results.parquet", "results.csv", "summary.md", "report.html"):
        assert str(folder / name) in lines
        assert (folder / name).is_file()
    summary = (folder / "summary.md").read_text()
    assert "| max_loss |" in summary
    assert "about other seeds, and not about other test examples" in " ".join(summary.split())
    assert "What is missing" not in summary
    assert "4 runs; 4 have finished before" in told.err


def test_what_a_variant_sets_is_told_wherever_its_numbers_are(copied, capsys):
    own = {"name": "max_loss", "method": "max_loss", "set": {"keep": 3}}  # as all have it, so that no run is to be made
    copied.file.write_text(yaml.safe_dump({**yaml.safe_load(copied.file.read_text()), "methods": [own]}))
    assert main(["compare", str(copied.file)]) == 0
    line = "Of the methods, max_loss stands for max_loss with keep=3."
    folder = copied.plan().folder
    assert line in capsys.readouterr().out
    assert line in (folder / "summary.md").read_text().split("\n")
    assert gather([folder]).notes == (line,)


def test_a_mistake_in_the_file_is_one_line_and_exit_code_2(made, capsys):
    assert main(["compare", str(made.file), "methods=graets"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("greats: error: the runs of graets: method:")
    assert "Traceback" not in told


def test_programs_are_kept_where_the_configuration_says(made, tmp_path):
    plan = made.plan(f"output={tmp_path / 'out'}", f"set.compilation_cache={tmp_path / 'kept'}")
    asked = []
    run_comparison(plan, Watching(), lambda: bool(asked.append(kept_in()) or True))
    assert asked == [str(tmp_path / "kept")]


def kept_in() -> str | None:
    return jax.config.values["jax_compilation_cache_dir"]


def test_compiled_programs_are_kept_in_the_folder_unless_the_user_keeps_them(tmp_path):
    before = kept_in()
    with compiled_programs_in(tmp_path / "unused"):  # these tests keep them somewhere
        assert kept_in() == before
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with compiled_programs_in(tmp_path / "kept"):
            jax.jit(lambda x: x * 3 + 1)(jax.numpy.ones(7)).block_until_ready()
        assert list((tmp_path / "kept").iterdir())
        assert kept_in() is None
        with compiled_programs_in(tmp_path / "unused", str(tmp_path / "named")):
            jax.jit(lambda x: x * 5 + 1)(jax.numpy.ones(7)).block_until_ready()
        assert list((tmp_path / "named").iterdir())
        assert not (tmp_path / "unused").exists()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()


@pytest.mark.slow
def test_the_whole_set_of_controls(tiny_model, tiny_data, tmp_path):
    made = Made(write_comparison(tiny_model, tiny_data, tmp_path, methods=["greats"], controls=None, seeds=3))
    ended, _ = made.run()
    assert ended == Ended(18, {}, False)
    found = {outcome.method: outcome for outcome in outcomes(read_curves(made.plan().folder))}
    assert set(found) == {"greats", "regular", "random_k", "greats_first_order", "max_loss", "target_only"}
    assert found["target_only"].equal_candidates.n == 0
