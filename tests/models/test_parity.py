"""Against the torch models of transformers and the adapters of peft; needs torch (extra `parity`)."""

import json

import jax
import numpy as np
import pytest

from greats_jax.models import (
    LoraConfig,
    add_lora,
    combine,
    from_pretrained,
    load_adapter,
    merge_lora,
    partition,
    save_adapter,
    save_pretrained,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-4
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
GPT2 = {"vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 64}
CASES = {
    "llama2": ("LlamaConfig", SHAPE | {"num_key_value_heads": 4, "tie_word_embeddings": False}),
    "llama3": ("LlamaConfig", SHAPE | {"rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "llama-linear": (
        "LlamaConfig",
        SHAPE | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
    ),
    "llama-biased": ("LlamaConfig", SHAPE | {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    "smollm2": ("LlamaConfig", SHAPE | {"tie_word_embeddings": True, "num_attention_heads": 6, "head_dim": 8}),
    "mistral": ("MistralConfig", SHAPE | {"sliding_window": 5}),
    "mistral-full": ("MistralConfig", SHAPE | {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2Config", SHAPE),
    "qwen2-window": ("Qwen2Config", SHAPE | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", SHAPE | {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-biased": ("Qwen3Config", SHAPE | {"head_dim": 16, "attention_bias": True}),
    "gpt2": ("GPT2Config", GPT2),
    "gpt2-untied": ("GPT2Config", GPT2 | {"n_inner": 64, "tie_word_embeddings": False}),
}


def torch_model(case):
    """A torch model with random weights, biases and norms too, large enough that every part shows in the logits."""
    name, settings = CASES[case]
    config = getattr(transformers, name)(**settings, attn_implementation="eager")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval().to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            norm = "norm" in name or ".ln_" in name
            parameter.copy_(1 + 0.3 * noise if norm and name.endswith("weight") else 0.12 * noise)
    return model


def inputs():
    """Three rows of 17 tokens: full, and padded on the right by 5 and by 12."""
    ids = np.random.default_rng(0).integers(0, 97, (3, 17)).astype(np.int32)
    mask = np.arange(17)[None] < np.array([17, 12, 5])[:, None]
    return ids, mask


def torch_logits(model, ids, mask):
    with torch.no_grad():
        return model(torch.tensor(ids).long(), attention_mask=torch.tensor(mask).long()).logits.numpy()


def logits(model, ids, mask):
    graphdef, params, frozen = partition(model)
    return np.asarray(jax.jit(lambda p, f, i, m: combine(graphdef, p, f)(i, m))(params, frozen, ids, mask))


def close(ours, theirs, mask, record, what):
    assert ours.shape == theirs.shape
    assert np.ptp(theirs[mask]) > 0.5, "the logits are too flat to tell models apart"
    difference = float(np.abs(ours - theirs)[mask].max())
    record(what, difference)
    assert difference <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_torch(case, tmp_path, record_property):
    model = torch_model(case)
    model.save_pretrained(tmp_path)
    ids, mask = inputs()
    close(logits(from_pretrained(tmp_path), ids, mask), torch_logits(model, ids, mask), mask, record_property, case)


@pytest.mark.parametrize("case", ["llama3", "qwen2-window", "gpt2"])
def test_sharded_checkpoint_equals_torch(case, tmp_path, record_property):
    model = torch_model(case)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    ids, mask = inputs()
    close(logits(from_pretrained(tmp_path), ids, mask), torch_logits(model, ids, mask), mask, record_property, case)


def test_bare_base_model_is_read(tmp_path, record_property):
    # Checkpoints of the model without its head leave out the "transformer." before each name.
    model = torch_model("gpt2")
    model.transformer.save_pretrained(tmp_path)
    ids, mask = inputs()
    close(logits(from_pretrained(tmp_path), ids, mask), torch_logits(model, ids, mask), mask, record_property, "bare")


@pytest.mark.parametrize("case", CASES)
def test_torch_loads_what_is_saved(case, tmp_path, record_property):
    torch_model(case).save_pretrained(tmp_path / "theirs")
    ours = from_pretrained(tmp_path / "theirs")
    # Changed weights, so that nothing can pass by finding the old files.
    graphdef, params, frozen = partition(ours)
    ours = combine(graphdef, jax.tree.map(lambda w: w * 1.1, params), frozen)
    save_pretrained(ours, tmp_path / "ours")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    ids, mask = inputs()
    close(logits(ours, ids, mask), torch_logits(model.eval(), ids, mask), mask, record_property, case)


@pytest.mark.parametrize(
    ("case", "targets"),
    [
        ("llama3", ("q_proj", "down_proj")),
        ("qwen3", ("all-linear",)),
        ("gpt2", ("c_attn", "c_fc")),
        ("gpt2", ("attn.c_proj",)),
    ],
)
def test_peft_loads_the_adapter(case, targets, tmp_path, record_property):
    peft = pytest.importorskip("peft")
    base = torch_model(case)
    base.save_pretrained(tmp_path / "base")
    adapted = with_random_adapter(from_pretrained(tmp_path / "base"), LoraConfig(4, 10.0, 0.1, targets))
    save_adapter(adapted, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    ids, mask = inputs()
    before = torch_logits(base, ids, mask)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    theirs = torch_logits(model, ids, mask)
    assert np.abs(theirs - before)[mask].max() > 0.1, "the adapter changed nothing"
    close(logits(adapted, ids, mask), theirs, mask, record_property, f"{case} adapter")
    merged = torch_logits(model.merge_and_unload(), ids, mask)
    close(logits(merge_lora(adapted), ids, mask), merged, mask, record_property, f"{case} merged")


@pytest.mark.parametrize(("case", "targets"), [("qwen2", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"])])
def test_an_adapter_of_peft_is_read(case, targets, tmp_path, record_property):
    peft = pytest.importorskip("peft")
    base = torch_model(case)
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    ids, mask = inputs()
    ours = load_adapter(from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    close(logits(ours, ids, mask), torch_logits(model, ids, mask), mask, record_property, f"{case} read")


@pytest.mark.parametrize("case", ["llama3", "mistral", "gpt2"])
def test_gradients_equal_torch(case, tmp_path, record_property):
    model = torch_model(case)
    model.save_pretrained(tmp_path)
    ids, _ = inputs()
    model(torch.tensor(ids).long(), labels=torch.tensor(ids).long()).loss.backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    ours = from_pretrained(tmp_path)
    graphdef, params, _ = partition(ours)

    def loss(params):
        log_p = jax.nn.log_softmax(combine(graphdef, params, {})(jax.numpy.asarray(ids))[:, :-1])
        return -jax.numpy.take_along_axis(log_p, ids[:, 1:, None], -1).mean()

    save_pretrained(combine(graphdef, jax.jit(jax.grad(loss))(params), {}), tmp_path / "gradients")
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "gradients" / "model.safetensors")
    assert set(found) == set(theirs)
    worst = max(float(np.abs(found[name] - theirs[name]).max()) for name in theirs)
    record_property(f"{case} gradients", worst)
    assert worst <= 1e-5


def test_greedy_generation_equals_torch(tmp_path):
    from greats_jax.models.generate import generate

    model = torch_model("llama3")
    model.save_pretrained(tmp_path)
    prompt = [5, 17, 3, 60, 8]
    theirs = model.generate(
        torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    ours = generate(from_pretrained(tmp_path), [prompt], max_new_tokens=12, eos_token_ids=())
    assert ours == [theirs[0, len(prompt) :].tolist()]


def test_configs_written_by_transformers_4_are_read(tmp_path, record_property):
    # Version 4 kept rope_theta and rope_scaling beside each other and called the dtype torch_dtype.
    model = torch_model("llama3")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    rope = settings.pop("rope_parameters")
    settings |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope, "torch_dtype": settings.pop("dtype")}
    settings["transformers_version"] = "4.46.0"
    path.write_text(json.dumps(settings))
    ids, mask = inputs()
    close(logits(from_pretrained(tmp_path), ids, mask), torch_logits(model, ids, mask), mask, record_property, "v4")


def with_random_adapter(model, config):
    graphdef, params, frozen = partition(add_lora(model, config, jax.random.key(1)))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return combine(graphdef, jax.tree.unflatten(structure, noisy), frozen)
