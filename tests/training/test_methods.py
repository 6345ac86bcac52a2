"""Every method from a configuration to its run folder, on the tiny model."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import Recording

from greats_jax.errors import ConfigError, DataError, GreatsError
from greats_jax.training import example_facts
from greats_jax.training.config_loading import load_config
from greats_jax.training.events import Selected
from greats_jax.training.inputs import ExampleFacts, make_inputs
from greats_jax.training.result import RunResult
from greats_jax.training.setup import load_data
from greats_jax.training.trainer import Trainer


class Letters:
    """An encoder that counts letters."""

    fingerprint = "letters"

    def encode(self, texts):
        return np.array([[text.count(letter) for letter in "abcdefgh"] for text in texts], np.float32)


def run(config_file: Path, *overrides: str) -> tuple[RunResult, list[Selected]]:
    tracker = Recording()
    result = Trainer(load_config(config_file, [*overrides, "steps=2"]), trackers=[tracker]).fit()
    return result, [event for event in tracker.events if isinstance(event, Selected)]


@pytest.mark.parametrize(
    "method",
    [
        "layer_wise", "partition_sel(budgets=[2, 1])", pytest.param("greats_adam", marks=pytest.mark.slow),
        pytest.param("opus(temperature=0.5)", marks=pytest.mark.slow),
        "quota(0.5*normalised(greats) + 0.5*uds, share=0.5)",
    ],
)  # fmt: skip
def test_a_method_trains_and_leaves_its_choices(method, config_file):
    result, selections = run(config_file, f"method={method}")
    assert result.status == "finished"
    assert result.config.method == method
    assert len(selections) == 2
    for selection in selections:
        assert 0 < len(selection.chosen) <= 6
        assert set(selection.chosen) <= set(selection.candidates)
    assert all(record["skipped"] == 0 for record in result.metrics if record["event"] == "step")


def test_quota_and_budgets_know_the_sources_of_the_pool(config_file):
    _, selections = run(config_file, "method=quota(max_loss, share=0.5)", "keep=4", "batch=12")
    for selection in selections:
        source_of = dict(zip(selection.candidates, selection.sources, strict=True))
        assert max(np.unique([source_of[name] for name in selection.chosen], return_counts=True)[1]) == 2


def test_sbert_ranks_by_the_texts_and_embeds_them_once(config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(example_facts, "load_sentence_encoder", lambda source: Letters())
    _, selections = run(config_file, "method=sbert", f"embedding.cache={tmp_path}/cache")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) > 0
    for selection in selections:
        ranked = sorted(zip(selection.scores, selection.candidates, strict=True), reverse=True)
        assert {name for _, name in ranked[:3]} == set(selection.chosen)


def test_target_only_learns_from_the_validation_examples(config_file):
    result, selections = run(config_file, "method=target_only")
    for selection in selections:
        assert set(selection.chosen) == set(selection.candidates)
        assert all(name.startswith("target-") for name in selection.chosen)
        assert set(selection.sources) == {"validation"}
    assert result.summary["last_loss"] < result.summary["first_loss"]


@pytest.mark.slow
def test_rho_loss_takes_the_base_model_or_a_second_one_or_a_table(config_file, tiny_model, tmp_path):
    """Before the first update the adapters add nothing: every difference to the base is 0, however it is told."""
    _, of_base = run(config_file, "method=rho_loss", f"output={tmp_path}/base")
    assert of_base[0].scores == pytest.approx([0.0] * 6, abs=1e-6)
    assert of_base[1].scores != pytest.approx([0.0] * 6, abs=1e-6)
    _, of_second = run(config_file, "method=rho_loss", f"reference.model={tiny_model}", f"output={tmp_path}/second")
    assert of_second[1].scores == pytest.approx(of_base[1].scores, abs=1e-6)
    losses = {}
    for selection in (*of_base, *of_second):
        first = zip(selection.candidates, selection.losses, selection.scores, strict=True)
        losses |= {name: float(loss or 0) - float(score or 0) for name, loss, score in first}
    pool = load_data(load_config(config_file), tokenizer_of(tiny_model)).pool
    rows = [(example.id, losses.get(example.id, 1.0)) for example in pool.examples]
    table = pa.table({"id": [name for name, _ in rows], "loss": [loss for _, loss in rows]})
    pq.write_table(table, tmp_path / "losses.parquet")
    _, of_table = run(
        config_file, "method=rho_loss", f"reference.losses={tmp_path}/losses.parquet", f"output={tmp_path}/table"
    )
    assert of_table[1].scores == pytest.approx(of_base[1].scores, abs=1e-5)


def tokenizer_of(folder):
    from greats_jax.models import load_tokenizer

    return load_tokenizer(str(folder))


def test_tables_that_do_not_fit_are_refused_before_anything_is_written(config_file, tmp_path):
    pq.write_table(pa.table({"id": ["x"], "loss": [1.0]}), tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    for name, message in (
        ("absent", "there is no such file"), ("text", "is no table"), ("other", "no loss for"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            run(config_file, "method=rho_loss", f"reference.losses={tmp_path}/{name}.parquet")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=greats + 1"], "has no meaning"),
        (["method=opus(temp=1)"], "opus has no setting 'temp'"),
        (["method=opus(temperature=-1)"], "it must be above 0"),
        (["method=partition_sel(budgets=3)"], "give one number of picks per source"),
        (["method=greats + random_k"], "gives no score per candidate"),
        (["method=uds", "scoring.upper_layers=1"], "set scoring.upper_layers to null"),
        (["method=layer_wise", "scoring.passes=two"], "leave scoring at its defaults"),
        (["method=rho_loss", "lora=null"], "give reference.model or reference.losses"),
        (["method=rho_loss", "reference.model=a", "reference.losses=b"], "both given"),
        (["method=target_only", "validation.source=recent"], "which validation.source=recent replaces"),
        (["validation.window=0"], "validation.window is 0"),
    ],
)
def test_settings_that_contradict_the_method_are_one_line(config_file, overrides, message):
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as caught:
        run(config_file, *overrides)
    assert message in str(caught.value)


def test_recent_candidates_stand_in_for_a_validation_set(config_file):
    result, selections = run(config_file, "validation.source=recent", "validation.per_step=4", "validation.window=1")
    assert result.status == "finished"
    assert np.isfinite([record["selection_validation_loss"] for record in result.metrics if "loss" in record]).all()
    config = load_config(config_file, ["validation.source=recent", "validation.per_step=null", "validation.window=1"])
    inputs = make_inputs(config, load_data(config, tokenizer_of(config.model.source)), ExampleFacts({}, {}))
    second = inputs(1)
    assert second.validation is not None
    np.testing.assert_array_equal(
        np.sort(second.validation.input_ids, axis=0), np.sort(inputs(0).candidates.batch.input_ids, axis=0)
    )
    assert selections[0].candidates == inputs(0).candidates.ids


@pytest.mark.parametrize(
    "combine", ["max", pytest.param("mean", marks=pytest.mark.slow), pytest.param("worst", marks=pytest.mark.slow)]
)
def test_one_run_serves_several_tasks(config_file, tiny_data, combine):
    more = {"name": "examples", "path": f"{tiny_data}/noise.jsonl", "n_validation": 3, "n_test": 4}
    result, _ = run(config_file, f"more_tasks=[{json.dumps(more)}]", f"validation.combine={combine}")
    sizes = np.bincount(load_data(result.config, tokenizer_of(result.config.model.source)).test_tasks)
    after = [record for record in result.metrics if record["event"] == "evaluation"][-1]
    assert {"validation/test_loss", "noise/test_loss"} <= set(after)
    expected = np.average([after["validation/test_loss"], after["noise/test_loss"]], weights=sizes)
    assert after["test_loss"] == pytest.approx(expected)


def test_a_task_named_twice_is_refused(config_file, tiny_data):
    more = {"name": "examples", "path": f"{tiny_data}/validation.jsonl"}
    with pytest.raises(GreatsError, match=r"name each once|no test example|leaves nothing"):
        run(config_file, f"more_tasks=[{json.dumps(more)}]")


def test_a_rule_in_a_file_of_ones_own_is_a_method(config_file, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from greats_jax.selection import eligible, register, top_k\n\n"
        "@register('smallest_loss', needs={'losses'})\n"
        "def smallest_loss(signals, k, *, learning_rate, key):\n"
        "    return top_k(-signals.losses, k, eligible(signals, -signals.losses))\n"
    )
    _, selections = run(config_file, f"rules={tmp_path}/mine.py", "method=smallest_loss")
    for selection in selections:
        order = np.argsort([float(loss or 0) for loss in selection.losses])[:3]
        assert {selection.candidates[i] for i in order} == set(selection.chosen)


@pytest.mark.parametrize(("text", "message"), [(None, "there is no such file"), ("1 / 0", "fails with ZeroDivision")])
def test_a_file_of_rules_that_cannot_be_used_is_one_line(config_file, tmp_path, text, message):
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        run(config_file, f"rules={tmp_path}/mine.py")
