"""What makes runs comparable: how all began, and what is said of runs that did not begin alike."""

import dataclasses
import json
from pathlib import Path

import pytest

from greats_jax.errors import RunError
from greats_jax.experiments.fairness import Beginning, batch_of, beginning_of, check_alike
from greats_jax.training.jsonl import read_json_lines
from greats_jax.training.result import RunResult


def test_all_runs_of_a_seed_began_alike(made):
    runs = [RunResult.load(run.folder) for run in made.plan().runs]
    for seed in (0, 1):
        of_seed = [run for run in runs if run.config.seed == seed]
        assert len({run.summary["before"]["test_loss"] for run in of_seed}) == 1
        assert len({run.summary["origin"]["initial"] for run in of_seed}) == 1
        assert len({json.dumps([s["candidates"] for s in run.selections]) for run in of_seed}) == 1
    initial = {run.config.seed: run.summary["origin"]["initial"] for run in runs}
    assert initial[0] != initial[1]  # adapters of another seed


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
