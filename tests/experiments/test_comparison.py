"""A comparison of tiny runs: begun, stopped, gone on with, grown, refused; what is in its tables; what is not fair."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pyarrow.parquet as pq
import pytest
import yaml
from jax.experimental.compilation_cache import compilation_cache
from runs import StopAt, without_clock
from tiny import Recording, tiny_config

from greats_jax.cli import main
from greats_jax.errors import ConfigError, GreatsError, RunError
from greats_jax.experiments.comparison import Ended, compiled_programs_in, run_comparison
from greats_jax.experiments.comparison_config import load_comparison
from greats_jax.experiments.comparison_plan import plan_comparison
from greats_jax.experiments.curves import curve_of, read_curves
from greats_jax.experiments.fairness import Beginning, batch_of, beginning_of, check_alike
from greats_jax.experiments.manifest import Manifest, check_grown
from greats_jax.experiments.outcomes import outcomes
from greats_jax.training.jsonl import read_json_lines
from greats_jax.training.result import RunResult
from greats_jax.training.trainer import Trainer

METHODS = ("max_loss", "random_k")


class Watching:
    """Remembers what a comparison tells, and can ask it to stop in the midst of a run."""

    def __init__(self, stop_in: str = "", after: int = 2):
        self.told: list[str] = []
        self._stop_in, self._stop = stop_in, StopAt(after)
        self._run = ""

    def begun(self, plan, finished):
        self.told.append(f"begun after {finished} of {len(plan.runs)}")

    def run_begun(self, run):
        self.told.append(f"{run.name} begun")
        self._run = run.name
        return self._stop if run.name == self._stop_in else Recording()

    def run_ended(self, run, failure):
        self.told.append(f"{run.name} {'failed' if failure else 'finished'}")

    def should_stop(self) -> bool:
        return self._run == self._stop_in and self._stop()


class Made:
    """A comparison's file, and how far it has come."""

    stopped: tuple[Ended, Watching]
    after_stop: dict[str, bool]
    ended: tuple[Ended, Watching]

    def __init__(self, file: Path):
        self.file = file

    def plan(self, *overrides: str):
        return plan_comparison(load_comparison(self.file, overrides))

    def run(self, *overrides: str, watcher: Watching | None = None) -> tuple[Ended, Watching]:
        watcher = watcher or Watching()
        return run_comparison(self.plan(*overrides), watcher, watcher.should_stop), watcher


def write_comparison(model: Path, data: Path, folder: Path, **keys) -> Path:
    (folder / "tiny.yaml").write_text(tiny_config(model, data, folder / "run"))
    path = folder / "comparison.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "train": str(folder / "tiny.yaml"), "set": {"steps": 4, "evaluate_every": 2}, "methods": ["max_loss"],
                "controls": ["random_k"], "target": "random_k", "seeds": 2, "output": str(folder / "out"), **keys,
            }
        )
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def made(tiny_model, tiny_data, tmp_path_factory):
    """Stopped in its second run and gone on with; to be looked at and not changed."""
    made = Made(write_comparison(tiny_model, tiny_data, tmp_path_factory.mktemp("compared")))
    made.stopped = made.run(watcher=Watching(stop_in="random_k-0"))
    made.after_stop = {path.name: (path / "summary.json").is_file() for path in made.plan().folder.glob("runs/*")}
    made.ended = made.run()
    return made


@pytest.fixture
def copied(made, tmp_path):
    """A copy of it, to be changed: the file and the folder."""
    folder = made.plan().folder
    shutil.copytree(folder, tmp_path / "out")
    tree = yaml.safe_load(made.file.read_text())
    (tmp_path / "comparison.yaml").write_text(yaml.safe_dump({**tree, "output": str(tmp_path / "out")}))
    return Made(tmp_path / "comparison.yaml")


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


def test_all_runs_of_a_seed_began_alike(made):
    runs = [RunResult.load(run.folder) for run in made.plan().runs]
    for seed in (0, 1):
        of_seed = [run for run in runs if run.config.seed == seed]
        assert len({run.summary["before"]["test_loss"] for run in of_seed}) == 1
        assert len({run.summary["origin"]["initial"] for run in of_seed}) == 1
        assert len({json.dumps([s["candidates"] for s in run.selections]) for run in of_seed}) == 1
    initial = {run.config.seed: run.summary["origin"]["initial"] for run in runs}
    assert initial[0] != initial[1]  # adapters of another seed


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


def tampered(path: Path, change) -> None:
    records = read_json_lines(path)
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_other_candidates_are_an_error_that_names_both_runs(copied):
    folder = copied.plan().folder / "runs" / "random_k-1"
    tampered(folder / "selections.jsonl", lambda record: record["candidates"].reverse())
    with pytest.raises(
        RunError, match="random_k-1 and max_loss-1 are not comparable: batch 1 of one has other candidates than that of"
    ):
        copied.run()


def test_another_first_evaluation_is_an_error_that_names_both_runs(copied):
    folder = copied.plan().folder / "runs" / "random_k-0"
    tampered(folder / "metrics.jsonl", lambda record: record.update(test_loss=9.5) if record["step"] == 0 else None)
    with pytest.raises(RunError, match=r"random_k-0 and max_loss-0 are not comparable: test_loss before .* is 9\.5 in"):
        copied.run()


@pytest.mark.parametrize(("name", "what"), [("initial", "weights"), ("examples", "examples")])
def test_another_origin_is_an_error(copied, name, what):
    path = copied.plan().folder / "runs" / "random_k-0" / "summary.json"
    summary = json.loads(path.read_text())
    summary["origin"][name] = "0" * 16
    path.write_text(json.dumps(summary))
    with pytest.raises(RunError, match=f"are not comparable: the {what} they began with differ"):
        copied.run()


def test_another_pool_of_another_seed_is_an_error(copied):
    """Data that changed while the comparison was stopped between two seeds."""
    for name in "max_loss-1", "random_k-1":
        path = copied.plan().folder / "runs" / name / "summary.json"
        summary = json.loads(path.read_text())
        assert len(summary["origin"]["pool"]) == 16
        summary["origin"]["pool"] = "0" * 16
        path.write_text(json.dumps(summary))
    with pytest.raises(RunError, match="max_loss-1 and max_loss-0 are not comparable: the pools they read differ"):
        copied.run()


def test_another_base_of_another_seed_is_an_error(copied):
    for name in "max_loss-1", "random_k-1":
        path = copied.plan().folder / "runs" / name / "summary.json"
        summary = json.loads(path.read_text())
        summary["origin"]["base"] = "0" * 16
        path.write_text(json.dumps(summary))
    with pytest.raises(RunError, match=r"max_loss-1 and max_loss-0 .*: the pretrained weights they read differ"):
        copied.run()


def test_runs_of_versions_that_wrote_less_down_are_compared_in_what_they_did(copied):
    for path in copied.plan().folder.glob("runs/*-0/summary.json"):
        summary = json.loads(path.read_text())
        del summary["origin"]["pool"]
        path.write_text(json.dumps(summary))
    assert copied.run()[0].finished == 4


def test_what_the_seed_decides_need_not_be_that_of_another_seed(made):
    run = RunResult.load(made.plan().runs[0].folder)
    one = beginning_of(run)
    check_alike(one._replace(seed=9, origin={}, first={}, candidates=((1, b"?"),)), [one])
    model = dataclasses.replace(run.config.model, weights="random")
    for changed, base in (({"lora": None}, "initial"), ({"model": model}, None), ({"method": "rho_loss"}, None)):
        own = beginning_of(dataclasses.replace(run, config=dataclasses.replace(run.config, **changed)))
        assert own.base == (base and run.summary["origin"][base])


def began(name: str, batches: list[str] | None, before: float | None = 1.0) -> Beginning:
    """How a run began whose candidates have names of one letter."""
    candidates = None if batches is None else tuple(batch_of(list(batch)) for batch in batches)
    return Beginning(name, {"initial": "a", "examples": "b"}, {"test_loss": before}, candidates)


def test_scores_of_the_first_evaluation_may_turn_by_a_last_bit(copied):
    path = copied.plan().folder / "runs" / "random_k-0" / "metrics.jsonl"
    tampered(path, lambda record: record.update(test_accuracy=0.5) if record["event"] == "evaluation" else None)
    assert copied.run()[0].finished == 4


def test_batches_of_another_size_are_not_compared():
    one = began("one", ["ab", "cd"])
    check_alike(one, [began("larger", ["xbc"]), began("target", None)])
    check_alike(one, [began("shorter", ["ab"])])
    with pytest.raises(RunError, match="one and other are not comparable: batch 2 of one has other candidates"):
        check_alike(one, [began("other", ["ab", "ce"])])


@pytest.mark.parametrize("before", [1.0, None, float("nan")])
def test_first_evaluations_may_differ_in_their_last_bits(before):
    """Programs that were compiled apart, or on other devices, add up in another order."""
    other = None if before is None else before * (1 + 1e-6)
    check_alike(began("one", None, before), [began("other", None, other)])
    for unlike in (2.0, 1.001):
        with pytest.raises(RunError, match="test_loss before the first update is"):
            check_alike(began("one", None, before), [began("other", None, unlike)])


def test_what_is_remembered_of_candidates_is_small(made):
    run = RunResult.load(made.plan().runs[0].folder)
    long = [{**record, "candidates": ["a long name of an example " * 99] * 6} for record in run.selections]
    found = beginning_of(dataclasses.replace(run, selections=tuple(long))).candidates
    assert found is not None
    assert all(count == 6 and len(digest) <= 16 for count, digest in found)


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
    assert refused.value.__notes__ == ["of the runs of fraction=0.9999; none has been begun"]
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
