"""Adapters in PEFT's files."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from greats_jax.errors import ModelError
from greats_jax.models import LoraConfig, add_lora, combine, from_pretrained, load_adapter, partition, save_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapted(model, **settings):
    graphdef, params, frozen = partition(add_lora(model, LoraConfig(**settings), jax.random.key(0)))
    rng = np.random.default_rng(3)
    return combine(graphdef, jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape) * 0.2, params), frozen)


@pytest.fixture
def saved(tiny, tmp_path):
    save_adapter(adapted(tiny(), rank=3, alpha=5.0, dropout=0.1, targets=("q_proj", "up_proj")), tmp_path, "owner/base")
    return tmp_path


def edit(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_round_trip(kind, tiny, tmp_path):
    model = adapted(tiny(kind), rank=3, targets=("all-linear",))
    save_adapter(model, tmp_path / "new" / "folder")
    loaded = load_adapter(tiny(kind), tmp_path / "new" / "folder")
    assert loaded.lora == model.lora
    assert partition(loaded)[0] == partition(model)[0]
    jax.tree.map(np.testing.assert_array_equal, partition(loaded)[1:], partition(model)[1:])


def test_files_are_those_of_peft(saved):
    settings = json.loads((saved / CONFIG).read_text())
    assert settings["peft_type"] == "LORA"
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (3, 5.0, 0.1)
    assert settings["target_modules"] == ["q_proj", "up_proj"]
    assert settings["base_model_name_or_path"] == "owner/base"
    assert settings["fan_in_fan_out"] is False
    tensors = load_file(saved / WEIGHTS)
    assert len(tensors) == 3 * 2 * 2
    assert tensors["base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"].shape == (3, 24)
    assert tensors["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"].shape == (40, 3)


def test_names_that_stand_for_two_maps_are_written_in_full(tiny, tmp_path):
    save_adapter(adapted(tiny("gpt2"), rank=2, targets=("attn.c_proj", "c_fc")), tmp_path)
    settings = json.loads((tmp_path / CONFIG).read_text())
    assert settings["target_modules"] == ["attn.c_proj", "c_fc"]
    assert settings["fan_in_fan_out"] is True


def test_nothing_is_overwritten(tiny, saved):
    before = (saved / WEIGHTS).read_bytes()
    with pytest.raises(ModelError, match=r"already holds adapter_config\.json"):
        save_adapter(adapted(tiny(), rank=2), saved)
    assert (saved / WEIGHTS).read_bytes() == before


def test_a_model_without_adapters_has_none_to_save(tiny, tmp_path):
    with pytest.raises(ModelError, match="no LoRA adapters to save"):
        save_adapter(tiny(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"use_rslora": True}, "use_rslora"),
        ({"bias": "all"}, "bias is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"r": "8"}, "must be numbers"),
        ({"r": -2}, "rank is -2"),
        ({"target_modules": "q|k"}, "target_modules is 'q|k'"),
        ({"target_modules": ["query"]}, "'query' is not in this model"),
        ({"target_modules": ["q_proj"]}, "holds 6 tensors that this model has no place for"),
        ({"target_modules": ["q_proj", "up_proj", "v_proj"]}, "has no base_model.*v_proj"),
        ({"r": 4}, r"says r is 4, but .* has shape \[3, 24\]"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message, tiny, saved):
    edit(saved, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_adapter(tiny(), saved)
    assert "\n" not in str(caught.value)


def test_the_wrong_base_model_is_refused(tiny, saved):
    with pytest.raises(ModelError, match="'q_proj' is not in this model"):
        load_adapter(tiny("gpt2"), saved)
    with pytest.raises(ModelError, match="no place for"):
        load_adapter(tiny(layers=2), saved)


def test_damaged_files_are_refused(tiny, saved):
    weights = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(weights[:-7])
    with pytest.raises(ModelError, match="is damaged"):
        load_adapter(tiny(), saved)
    (saved / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=f"has no {WEIGHTS}"):
        load_adapter(tiny(), saved)
    (saved / CONFIG).write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        load_adapter(tiny(), saved)
    with pytest.raises(ModelError, match="no adapter at"):
        load_adapter(tiny(), saved / "missing")


def test_an_adapter_is_not_taken_for_a_model(saved):
    with pytest.raises(ModelError, match="holds an adapter, not a model: load its base model"):
        from_pretrained(saved)


def test_whole_numbers_are_no_weights(tiny, saved):
    tensors = {name: array.astype(np.int32) for name, array in load_file(saved / WEIGHTS).items()}
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(ModelError, match=r"is int32\[3, 24\]"):
        load_adapter(tiny(), saved)
