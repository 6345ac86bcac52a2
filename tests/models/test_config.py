"""Configurations of others: read as transformers 4 and 5 write them, and written back."""

import json

import pytest

from greats_jax.errors import ModelError
from greats_jax.models import DecoderConfig, RopeConfig
from greats_jax.models.checkpoint import read_config, write_config

LLAMA = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 256}


def read(folder, settings, generation=None):
    (folder / "config.json").write_text(json.dumps(settings))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_config(folder)


def test_llama(tmp_path):
    assert read(tmp_path, LLAMA | {"rope_theta": 50000.0}) == DecoderConfig(
        family="llama",
        vocab_size=128,
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        ffn_width=48,
        max_length=512,
        norm_eps=1e-5,
        tied=True,
        rope=RopeConfig(50000.0),
        bos_token_id=1,
        eos_token_ids=(2,),
    )


@pytest.mark.parametrize(
    "written",
    [
        {"rope_theta": 500.0, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
        {"rope_theta": 500.0, "rope_scaling": LLAMA3 | {"type": "llama3"}},
        {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 500.0}},
    ],
    ids=["transformers 4", "early transformers 4", "transformers 5"],
)
def test_rope_is_read_in_every_spelling(written, tmp_path):
    assert read(tmp_path, LLAMA | written).rope == RopeConfig(500.0, "llama3", 8.0, 1.0, 4.0, 256)


def test_linear_rope(tmp_path):
    settings = LLAMA | {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert read(tmp_path, settings).rope == RopeConfig(1e4, "linear", 2.0)


def test_biases_and_heads(tmp_path):
    settings = LLAMA | {"attention_bias": True, "mlp_bias": True, "head_dim": 16, "num_key_value_heads": None}
    config = read(tmp_path, settings)
    assert (config.qkv_bias, config.out_bias, config.mlp_bias) == (True, True, True)
    assert (config.head_dim, config.kv_heads) == (16, 4)


def test_mistral_has_a_window_on_every_layer(tmp_path):
    assert read(tmp_path, LLAMA | {"model_type": "mistral", "sliding_window": 7}).windows == (7, 7)
    assert read(tmp_path, LLAMA | {"model_type": "mistral", "sliding_window": None}).windows == ()


def test_qwen2_has_biases_and_windows_on_upper_layers(tmp_path):
    settings = LLAMA | {"model_type": "qwen2", "sliding_window": 7, "max_window_layers": 1}
    config = read(tmp_path, settings | {"use_sliding_window": True})
    assert (config.qkv_bias, config.out_bias, config.windows) == (True, False, (0, 7))
    assert read(tmp_path, settings | {"use_sliding_window": False}).windows == ()


def test_qwen3_has_norms_on_queries_and_keys(tmp_path):
    config = read(tmp_path, LLAMA | {"model_type": "qwen3", "head_dim": 16})
    assert (config.qk_norm, config.qkv_bias, config.head_dim) == (True, False, 16)


def test_gpt2(tmp_path):
    config = read(tmp_path, {"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2, "vocab_size": 90})
    assert config.rope is None
    assert (config.ffn_width, config.activation, config.tied, config.kv_heads) == (128, "gelu_tanh", True, 4)
    assert (config.qkv_bias, config.out_bias, config.mlp_bias) == (True, True, True)


def test_stops_of_the_generation_config_count(tmp_path):
    assert read(tmp_path, LLAMA | {"eos_token_id": [2, 5]}).eos_token_ids == (2, 5)
    assert read(tmp_path, LLAMA, {"eos_token_id": [2, 7, 8]}).eos_token_ids == (2, 7, 8)
    assert read(tmp_path, LLAMA, {"temperature": 0.5}).eos_token_ids == (2,)


def test_written_configs_are_read_back(kind, config_of, tmp_path):
    config = config_of(kind, bos_token_id=1, eos_token_ids=(2, 3), pad_token_id=0)
    write_config(config, tmp_path)
    assert read_config(tmp_path) == config
    assert "architectures" in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma"}, "'gemma' is not supported: this package has llama, mistral, qwen2, qwen3, gpt2"),
        ({"model_type": None}, "model type None"),
        ({"hidden_act": "mish"}, "activation 'mish' is not supported"),
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3|num_key_value_heads"),
        ({"num_hidden_layers": 0}, "layers is 0"),
        ({"hidden_size": "wide"}, "not a valid llama configuration|width is 'wide'"),
        ({"head_dim": 7}, "head_dim"),
        ({"rms_norm_eps": 0.0}, "norm_eps is 0.0"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised weights are not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn' is not supported"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(changes, message, tmp_path):
    with pytest.raises(ModelError, match=message) as caught:
        read(tmp_path, LLAMA | changes)
    assert "\n" not in str(caught.value)


def test_gpt2_variants_are_refused(tmp_path):
    for changes in ({"scale_attn_by_inverse_layer_idx": True}, {"add_cross_attention": True}):
        with pytest.raises(ModelError, match="GPT-2 with"):
            read(tmp_path, {"model_type": "gpt2"} | changes)


def test_unreadable_configs_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_config(tmp_path)
    for content, message in (("{", "cannot be read as JSON"), ("[1]", "holds a list"), ("{}", "has no model_type")):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelError, match=message):
            read_config(tmp_path)


@pytest.mark.parametrize("field", ["dtype", "compute_dtype", "remat", "activation"])
def test_unknown_names_list_the_known_ones(field, config_of):
    with pytest.raises(ModelError, match=r"use one of|is not one of"):
        config_of(**{field: "half"})
