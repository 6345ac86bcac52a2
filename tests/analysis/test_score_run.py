"""Scores of the tiny pool, against what the model says of each example alone."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest

from greats_jax.analysis import score_run
from greats_jax.analysis.score_run import (
    fingerprint_of_arrays,
    fingerprint_of_examples,
    model_of_config,
    model_of_run,
    score_pool,
)
from greats_jax.analysis.taylor import inner
from greats_jax.data import collate
from greats_jax.errors import ConfigError, ModelError, RunError
from greats_jax.models import combine, partition
from greats_jax.training import example_facts
from greats_jax.training.config import EmbeddingConfig
from greats_jax.training.config_loading import load_config
from greats_jax.training.losses import language_model_loss, language_rows
from greats_jax.training.setup import load_data


@pytest.fixture(scope="module")
def scored(finished_run):
    return model_of_run(str(finished_run.result.folder))


@pytest.fixture(scope="module")
def greats(scored, tmp_path_factory) -> tuple[Path, list]:
    """The pool of 69 (what is in the target too is not in it) scored in pieces of 24."""
    seen: list = []
    output = tmp_path_factory.mktemp("scores") / "greats.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_run, "_PIECE", 24)
        score_pool(scored, "greats_first_order", output, 6, seen.append, lambda *numbers: seen.append(numbers))
    return output, seen


def test_scores_are_alignments_with_the_mean_validation_gradient(scored, greats):
    data = load_data(scored.config, scored.tokenizer)
    graphdef, params, frozen = partition(scored.model)
    loss = language_model_loss(graphdef, combine)

    @jax.jit
    def gradient(row):
        return jax.value_and_grad(loss)(params, frozen, jax.tree.map(lambda x: x[0], row))

    def alone(example):
        return gradient(language_rows(collate([example], 32, data.pool.pad_id)))

    target = [alone(example)[1] for example in data.validation]
    mean = jax.tree.map(lambda *g: sum(g) / len(g), *target)
    table = pq.read_table(greats[0])
    assert table["id"].to_pylist() == [example.id for example in data.pool.examples]
    assert table["tokens"].to_pylist() == [len(example.input_ids) for example in data.pool.examples]
    assert set(table["source"].to_pylist()) == {"copy", "noise"}
    for index in (0, 5, 41, 68):
        value, own = alone(data.pool.examples[index])
        assert table["loss"][index].as_py() == pytest.approx(float(value), rel=1e-4)
        assert table["score"][index].as_py() == pytest.approx(float(inner(own, mean)), rel=1e-3, abs=1e-6)


def test_progress_counts_examples_and_pieces_are_row_groups(greats):
    output, seen = greats
    assert seen == [
        (0, 69), "finding the direction of 4 validation examples", (24, 69), (48, 69), (69, 69),
    ]  # fmt: skip
    assert pq.ParquetFile(output).num_row_groups == 3


def test_a_stopped_table_ends_as_the_same_file(scored, greats, tmp_path, monkeypatch):
    monkeypatch.setattr(score_run, "_PIECE", 24)
    output = tmp_path / "again.parquet"

    def stop(done: int, total: int) -> None:
        if done == 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_pool(scored, "greats_first_order", output, 6, progress=stop)
    assert not output.exists()
    seen: list = []
    score_pool(scored, "greats_first_order", output, 6, progress=lambda *numbers: seen.append(numbers))
    assert seen == [(48, 69), (69, 69)]
    assert output.read_bytes() == greats[0].read_bytes()
    with pytest.raises(RunError, match="method"):
        score_pool(scored, "max_loss", output, 6)


def test_a_rule_of_losses_needs_no_validation_gradient(scored, tmp_path):
    seen: list = []
    score_pool(scored, "2*max_loss", tmp_path / "loss.parquet", 6, seen.append)
    assert seen == []
    table = pq.read_table(tmp_path / "loss.parquet")
    assert np.allclose(table["score"].to_numpy(), 2 * table["loss"].to_numpy())


@pytest.mark.parametrize(
    ("method", "message"),
    [("graets", "did you mean \"?'?greats"), ("layer_wise", "no score per candidate")],
)
def test_a_rule_that_cannot_score_is_refused(scored, tmp_path, method, message):
    with pytest.raises(ConfigError, match=message):
        score_pool(scored, method, tmp_path / "no.parquet", 6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["uds", "rho_loss", "quota(max_loss, share=0.5)"])
def test_rules_of_logits_references_and_sources_score_too(scored, tmp_path, method):
    score_pool(scored, method, tmp_path / "table.parquet", 6)
    table = pq.read_table(tmp_path / "table.parquet")
    assert len(table) == 69
    assert np.isfinite(table["score"].to_numpy()).all()


def test_sbert_compares_with_all_validation_examples(scored, tmp_path, monkeypatch):
    class Lengths:
        fingerprint = "lengths"

        def encode(self, texts):
            return np.array([[len(text), 1.0] for text in texts], np.float32)

    monkeypatch.setattr(example_facts, "load_sentence_encoder", lambda source: Lengths())
    config = replace(scored.config, embedding=EmbeddingConfig(cache=str(tmp_path / "cache")))
    score_pool(scored._replace(config=config), "sbert", tmp_path / "table.parquet", 6)
    data = load_data(config, scored.tokenizer)
    ours, theirs = (
        np.array([[len(scored.tokenizer.decode(e.input_ids, skip_special_tokens=True)), 1.0] for e in examples])
        for examples in (data.pool.examples, data.validation)
    )
    ours, theirs = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (ours, theirs))
    found = pq.read_table(tmp_path / "table.parquet")["score"].to_numpy()
    np.testing.assert_allclose(found, (ours @ theirs.T).mean(1), rtol=1e-5)


def test_random_choice_has_no_score(scored, tmp_path):
    with pytest.raises(ValueError, match="no score per candidate"):
        score_pool(scored, "random_k", tmp_path / "no.parquet", 6)
    assert not list(tmp_path.iterdir())


def test_weights_come_from_a_run_or_an_adapter_alike(scored, finished_run):
    folder = finished_run.result.folder
    config = load_config(folder / "config.yaml")
    after = fingerprint_of_arrays(partition(scored.model)[1])
    for place in (folder, folder / "adapter"):
        assert fingerprint_of_arrays(partition(model_of_config(config, str(place)).model)[1]) == after
    assert fingerprint_of_arrays(partition(model_of_config(config).model)[1]) != after
    with pytest.raises(ModelError, match="no such folder"):
        model_of_config(config, "gone")


def test_a_whole_model_is_a_checkpoint_too(scored, tiny_model):
    model = model_of_config(replace(scored.config, lora=None), str(tiny_model)).model
    assert model.lora is None


def test_fingerprints_see_a_change_of_any_kind(scored):
    tree = {"a": jnp.ones((4, 4)), "b": jnp.zeros(3)}
    changed = [{**tree, "a": tree["a"].at[1, 2].set(2)}, {**tree, "a": jnp.ones((2, 8))}, {"a": tree["a"]}]
    prints = {fingerprint_of_arrays(t) for t in [tree, *changed]}
    assert len(prints) == 4
    examples = load_data(scored.config, scored.tokenizer).validation
    flipped = [examples[0]._replace(label_mask=~examples[0].label_mask), *examples[1:]]
    assert fingerprint_of_examples(examples) != fingerprint_of_examples(flipped)
