import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from tiny import FinishedRun, Recording

from greats_jax.errors import ConfigError, DataError, RunError
from greats_jax.models import from_pretrained, load_tokenizer
from greats_jax.training import trainer
from greats_jax.training.config_loading import load_config
from greats_jax.training.events import Evaluated, Event, Noticed, Selected, Started, Stepped
from greats_jax.training.result import RunResult
from greats_jax.training.setup import load_base, load_trained
from greats_jax.training.trainer import Trainer

IDS = jnp.array([[6, 7, 8, 9]])


def fit(config_file, *overrides: str) -> RunResult:
    return Trainer(load_config(config_file, overrides)).fit()


def logits_of(result: RunResult) -> np.ndarray:
    return np.asarray(load_trained(result)[0](IDS))


def records(result: RunResult, event: str) -> list[dict]:
    return [record for record in result.metrics if record["event"] == event]


def test_a_run_folder_holds_everything_and_the_result_is_what_it_holds(finished_run: FinishedRun):
    pytest.importorskip("matplotlib")
    result = finished_run.result
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "adapter", "config.yaml", "curves", "metrics.jsonl", "selections.jsonl", "summary.json",
    ]  # fmt: skip
    assert result == RunResult.load(result.folder)
    assert load_config(result.folder / "config.yaml") == result.config
    assert result.status == "finished"
    assert (result.weights / "adapter_config.json").exists()
    assert len(result.plots) == 3


def test_metrics_of_a_run(finished_run: FinishedRun):
    steps, evaluations = records(finished_run.result, "step"), records(finished_run.result, "evaluation")
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert [record["step"] for record in evaluations] == [0, 2, 3]
    seen = 0
    for record in steps:
        tokens, seen = record["candidate_tokens"] - seen, record["candidate_tokens"]
        assert record["tokens_per_second"] == pytest.approx(tokens / record["seconds"])
        if record["compiled"]:
            assert record["seconds_selecting"] is record["seconds_picking"] is None
        else:
            assert 0 < record["seconds_picking"] <= record["seconds_selecting"] < record["seconds"]
        assert record["trained_tokens"] < record["candidate_tokens"]
        assert 0 <= record["padding_share"] < 1
        assert record["learning_rate"] == pytest.approx(0.01)
        assert record["skipped"] == record["rejected_candidates"] == record["rejected_validation"] == 0
    assert [record["compiled"] for record in steps] == [True, False, False]
    for record in evaluations:
        assert record["test_perplexity"] == pytest.approx(np.exp(record["test_loss"]))


def test_the_perplexity_before_training_is_that_of_the_model_as_loaded(finished_run: FinishedRun, tiny_data):
    """By hand: mean over examples of the mean over label tokens, from logits of one unpadded example at a time."""
    from greats_jax.data import DataConfig, SourceConfig, build_pool

    source = finished_run.result.config.model.source
    data = DataConfig(sources=(SourceConfig(str(tiny_data / "validation.jsonl")),), max_length=32)
    model = from_pretrained(source)
    forward = jax.jit(lambda ids: model(ids))
    losses = []
    for example in build_pool(data, load_tokenizer(source)).examples:
        logits = np.asarray(forward(example.input_ids[None]))[0].astype(np.float64)
        logs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        places = np.flatnonzero(example.label_mask)
        losses.append(-np.mean([logs[place - 1, example.input_ids[place]] for place in places]))
    before = records(finished_run.result, "evaluation")[0]
    assert before["validation_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_trackers_hear_of_everything_in_order(finished_run: FinishedRun):
    kinds = [type(event) for event in finished_run.tracker.events if not isinstance(event, Noticed)]
    assert kinds == [Started, Evaluated, *[Selected, Stepped] * 2, Evaluated, Selected, Stepped, Evaluated]
    assert finished_run.tracker.closed == 1


def test_the_host_reads_a_step_only_after_the_next_is_dispatched(finished_run: FinishedRun):
    # The evaluation after the second step waits for it; there is none to hide behind after the third.
    assert finished_run.order == ["dispatch", "dispatch", "read", "read", "dispatch", "read"]


def test_selections_say_what_was_chosen_from_what(finished_run: FinishedRun):
    for record in finished_run.result.selections:
        assert len(record["candidates"]) == len(record["sources"]) == len(record["scores"]) == 6
        assert len(record["chosen"]) == len(record["weights"]) == 3
        assert set(record["chosen"]) < set(record["candidates"])
        for name, source in zip(record["candidates"], record["sources"], strict=True):
            assert name.startswith(source)
        # The first choice of GREATS is the best score.
        assert record["chosen"][0] == record["candidates"][int(np.argmax(record["scores"]))]


def test_the_same_seed_gives_the_same_run_and_another_one_another(finished_run: FinishedRun, config_file, tmp_path):
    def chosen(result: RunResult) -> list[list[str]]:
        return [record["chosen"] for record in result.selections]

    again = fit(config_file, f"output={tmp_path}/again")
    assert chosen(again) == chosen(finished_run.result)
    np.testing.assert_array_equal(logits_of(again), logits_of(finished_run.result))
    other = fit(config_file, f"output={tmp_path}/other", "seed=1")
    assert chosen(other) != chosen(again)


@pytest.mark.slow
def test_dropout_is_drawn_in_training_and_not_in_evaluation(finished_run: FinishedRun, config_file):
    dropped = fit(config_file, "lora.dropout=0.5")
    assert np.abs(logits_of(dropped) - logits_of(finished_run.result)).max() > 1e-6
    model, _ = load_trained(dropped)
    assert records(dropped, "evaluation")[0] | {"seconds": 0} == records(finished_run.result, "evaluation")[0] | {
        "seconds": 0
    }
    np.testing.assert_array_equal(model(IDS), model(IDS))


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(("method=regular", "update_weighting=tokens"), marks=pytest.mark.slow),
        pytest.param(
            (
                "method=greats_first_order",
                "validation.mode=cached",
                "validation.refresh_every=2",
                "validation.per_step=2",
            ),
            marks=pytest.mark.slow,
        ),
        ("model.dtype=bfloat16", "data.buckets=2", "data.group_by_length=true"),
        pytest.param(
            ("scoring.passes=two", "scoring.micro_batches=2", "model.remat=full", "lora=null"), marks=pytest.mark.slow
        ),
        pytest.param(
            ("scoring.upper_layers=1", "scoring.projection=64", "scoring.leaves=q_proj|v_proj"), marks=pytest.mark.slow
        ),
    ],
    ids=lambda overrides: overrides[0],
)
def test_every_way_to_train_runs_and_moves_the_weights(config_file, overrides):
    result = fit(config_file, *overrides)
    assert result.summary["steps"] == len(result.selections) == 3
    kept = 6 if result.config.method == "regular" else 3
    if result.config.method == "regular":
        assert records(result, "step")[-1]["seconds_selecting"] == 0
    assert all(len(record["chosen"]) == kept for record in result.selections)
    assert all(np.isfinite(record["loss"]) for record in records(result, "step"))
    before = np.asarray(from_pretrained(result.config.model.source, result.config.model.dtype)(IDS))
    assert np.abs(logits_of(result) - before).max() > 1e-6


def test_full_training_learns_the_target(config_file):
    result = fit(config_file, "steps=40", "optimizer.learning_rate=0.05", "lora=null", "model.remat=full")
    before, after = result.summary["before"], result.summary["after"]
    assert after["test_perplexity"] < 0.6 * before["test_perplexity"]
    assert result.summary["last_loss"] < result.summary["first_loss"]
    shares = result.summary["sources"]
    assert shares["copy"]["chosen_share"] > shares["copy"]["candidate_share"]
    assert sorted(path.name for path in result.weights.iterdir() if path.suffix == ".safetensors") == [
        "model.safetensors"
    ]


def test_accumulation_is_one_update_per_micro_batches(config_file):
    result = fit(config_file, "accumulate=3", "steps=2", "optimizer.schedule=linear")
    assert [(record["step"], record["micro_batch"]) for record in result.selections] == [
        (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2),
    ]  # fmt: skip
    steps = records(result, "step")
    # The schedule counts updates; this is the rate the rule saw as well as the optimizer's.
    np.testing.assert_allclose([record["learning_rate"] for record in steps], [0.01, 0.005], rtol=1e-5)


def test_a_run_stopped_early_pretends_no_end(config_file):
    tracker = Recording()
    stopping = Trainer(load_config(config_file), [tracker], lambda: any(isinstance(e, Stepped) for e in tracker.events))
    result = stopping.fit()
    assert result.status == "interrupted"
    assert result.summary["steps"] == 2  # a step is read when the next has been dispatched
    assert result.summary["after"] is None
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "checkpoints", "config.yaml", "metrics.jsonl", "selections.jsonl",
    ]  # fmt: skip
    with pytest.raises(RunError, match=r"has not ended.*--resume"):
        RunResult.load(result.folder)


def test_a_failure_while_loading_leaves_no_folder(config_file, tmp_path):
    with pytest.raises(DataError):
        fit(config_file, f"data.sources={tmp_path}/gone.jsonl")
    assert not (tmp_path / "run").exists()


def test_scoring_by_more_layers_than_there_are_is_refused(config_file, tmp_path):
    with pytest.raises(ConfigError, match=r"upper_layers is 9, but the model has \d layers"):
        fit(config_file, "scoring.upper_layers=9")
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_stops_the_run_and_the_others_are_closed(config_file, tmp_path):
    class Failing(Recording):
        def record(self, event: Event) -> None:
            if isinstance(event, Stepped):
                raise RuntimeError("disk full")

    kept = Recording()
    with pytest.raises(RuntimeError, match="disk full"):
        Trainer(load_config(config_file), trackers=[kept, Failing()]).fit()
    assert kept.closed == 1
    with pytest.raises(RunError, match="has not ended"):
        RunResult.load(tmp_path / "run")


def test_without_matplotlib_one_line_says_how_to_get_curves(finished_run: FinishedRun, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    shutil.copytree(finished_run.result.folder, tmp_path / "run", ignore=shutil.ignore_patterns("curves"))
    tracker = Recording()
    trainer._finish(tmp_path / "run", tracker.record, {})
    [notice] = tracker.events
    assert isinstance(notice, Noticed)
    assert "pip install matplotlib" in notice.text
    assert RunResult.load(tmp_path / "run").plots == ()


def test_resolving_happens_before_anything_is_touched(config_file, tmp_path):
    config = dataclasses.replace(load_config(config_file), keep=7)
    with pytest.raises(ValueError, match="keep is 7"):
        Trainer(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_stories260k_on_real_instructions(shared, tmp_path):
    """The real tiny model on real data, toward MMLU, through the same door as a user."""
    data = shared / "data"
    settings = {
        "model": str(data / "models" / "stories260k"),
        "data": {"sources": [str(data / "train" / "self_instruct_human.jsonl.gz")], "max_length": 512, "buckets": 1},
        "task": {"name": "mmlu", "subject": "sociology", "path": str(data / "eval" / "mmlu"), "n_test": 8},
        "lora": None,
        "steps": 3,
        "optimizer": {"learning_rate": 1e-3, "warmup": 0},
        "output": str(tmp_path / "run"),
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    result = Trainer(load_config(tmp_path / "c.yaml", ["data.on_bad_record=skip"])).fit()
    assert result.summary["steps"] == 3
    assert np.isfinite(result.summary["after"]["test_perplexity"])
    assert json.loads((result.weights / "config.json").read_text())["vocab_size"] == 512


def test_a_model_can_be_trained_from_scratch(config_file, tiny_model, tmp_path):
    shape = tmp_path / "shape"
    shape.mkdir()
    (shape / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    settings = [
        f"model.source={shape}",
        f"model.tokenizer={tiny_model}",
        "model.weights=random",
        "lora=null",
        "steps=1",
    ]
    result = Trainer(load_config(config_file, settings)).fit()
    before = records(result, "evaluation")[0]
    # Weights of standard deviation 0.02 say nothing: every token is as likely as any other.
    assert before["test_loss"] == pytest.approx(np.log(from_pretrained(tiny_model).config.vocab_size), abs=0.05)
    trained, tokenizer = load_trained(result)
    assert tokenizer.get_vocab() == load_tokenizer(tiny_model).get_vocab()
    first, _ = load_base(result.config.model, result.config.seed)
    assert not np.array_equal(np.asarray(trained.embed[...]), np.asarray(first.embed[...]))


def test_adapters_on_random_weights_are_refused(config_file):
    with pytest.raises(ConfigError, match="lora=null"):
        Trainer(load_config(config_file, ["model.weights=random"]))
