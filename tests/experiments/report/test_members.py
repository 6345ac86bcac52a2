import json
import shutil

import pytest

from greats_jax.errors import RunError
from greats_jax.experiments.report.members import flat, gather


def test_runs_inside_a_folder_are_found_and_named_by_method_and_seed(runs):
    members = gather([runs])
    assert members.methods == ("greats", "max_loss", "random_k", "regular")
    assert members.settings == ("",)
    assert members.seeds == (0, 1, 2)
    assert members.asked == ("greats",)
    assert members.target == "regular"
    assert members.title == "runs"
    assert [member.seed for member in members.of("", "greats")] == [0, 1, 2]
    assert members.notes == ()


def test_a_comparison_says_what_is_missing_and_why(comparison):
    members = gather([comparison])
    assert members.settings == ("keep=2", "keep=3")
    assert members.methods == ("greats", "random_k")
    assert members.target == "random_k"
    assert len(members.runs) == 6
    assert members.notes == (
        "The run keep=3-random_k-1 failed: the disk was full.",
        "Of the 8 runs of the comparison, 1 have not finished and are left out.",
    )


def test_runs_of_the_same_method_and_seed_are_told_apart_by_what_differs(make_run, tmp_path):
    one = make_run(tmp_path / "one", "optimizer.learning_rate=0.01")
    other = make_run(tmp_path / "other", "optimizer.learning_rate=0.02")
    again = make_run(tmp_path / "again", "optimizer.learning_rate=0.02")
    found = gather([one.folder, other.folder])
    assert found.settings == ("optimizer.learning_rate=0.01", "optimizer.learning_rate=0.02")
    assert len(gather([one.folder, other.folder, again.folder]).settings) == 3
    assert gather([one.folder]).settings == ("",)


def test_an_unfinished_run_is_shown_as_far_as_it_went(runs, tmp_path):
    folder = tmp_path / "stopped"
    shutil.copytree(runs / "greats-0", folder)
    (folder / "summary.json").unlink()
    members = gather([folder, runs / "regular-0"])
    assert members.notes == ("Not finished, and shown as far as they went: stopped.",)
    assert [len(member.steps) for member in members.runs] == [12, 12]


def test_what_is_no_run_is_told(tmp_path, runs):
    with pytest.raises(
        RunError, match="there is no run or comparison here; give a folder that greats train or greats c"
    ):
        gather([tmp_path])
    shutil.copytree(runs / "greats-0", tmp_path / "begun")
    (tmp_path / "begun" / "summary.json").unlink()
    (tmp_path / "begun" / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="no run here has been evaluated yet"):
        gather([tmp_path / "begun"])


def test_a_folder_that_is_named_twice_counts_once(runs):
    assert gather([runs, runs / "."]).runs == gather([runs]).runs


def test_nested_settings_become_dotted_keys():
    assert flat({"a": {"b": 1, "c": [None, "x"]}, "d": {}}) == {"a.b": "1", "a.c.0": "null", "a.c.1": "x", "d": "{}"}


def test_what_went_wrong_in_a_run_is_noted(runs, tmp_path):
    folder = tmp_path / "spiky"
    shutil.copytree(runs / "greats-0", folder)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"skipped": 2, "loss_spikes": 0}))
    (note,) = gather([folder]).notes
    assert note == "spiky: 2 updates were skipped, for want of a candidate or validation row with a finite loss."


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("selections.jsonl", {"candidates": None}),
        ("selections.jsonl", {"losses": []}),
        ("selections.jsonl", {"chosen": [["copy-1"]], "weights": [1.0]}),
        ("selections.jsonl", {"weights": ["heavy"], "chosen": ["copy-1"]}),
        ("metrics.jsonl", {"event": "party"}),
        ("metrics.jsonl", {"seconds": "long"}),
        ("metrics.jsonl", {"step": None}),
    ],
)
def test_damaged_records_are_told_in_a_line(runs, tmp_path, name, change):
    folder = tmp_path / "run"
    shutil.copytree(runs / "greats-0", folder)
    first, rest = (folder / name).read_text().split("\n", 1)
    (folder / name).write_text(json.dumps(json.loads(first) | change) + "\n" + rest)
    with pytest.raises(RunError, match="the run folder is damaged"):
        gather([folder])


@pytest.mark.parametrize("key", ["candidate_tokens", "trained_tokens", "seconds_selecting", "compiled", "loss"])
def test_a_record_of_an_update_that_lacks_something_is_told_in_a_line(runs, tmp_path, key):
    folder = tmp_path / "run"
    shutil.copytree(runs / "greats-0", folder)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop(key, None)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(RunError, match="the run folder is damaged"):
        gather([folder])


def test_two_comparisons_keep_what_each_is_about(comparison, tmp_path):
    other = tmp_path / "choosing"
    shutil.copytree(comparison, other)
    manifest = json.loads((other / "comparison.json").read_text())
    (other / "comparison.json").write_text(json.dumps(manifest | {"asked": ["random_k"], "target": "greats"}))
    members = gather([comparison, other])
    assert members.asked == ("greats", "random_k")
    assert members.target == "random_k"
    assert members.settings == ("keeping, keep=2", "keeping, keep=3", "choosing, keep=2", "choosing, keep=3")
    assert "How soon is measured against random_k in all comparisons, in none against greats." in members.notes


def test_grad_norm_is_asked_about(make_run, tmp_path):
    # It is no control of a comparison, so that a report of single runs is about it as that of a comparison would be.
    folders = [make_run(tmp_path / name, f"method={name}", "keep=3").folder for name in ("grad_norm", "random_k")]
    assert gather(folders).asked == ("grad_norm",)
