"""What a plan says of a run: its parts by hand, its modes, and the sentence at the end."""

import dataclasses
import json

import jax
import pytest

from greats_jax.cli import main
from greats_jax.errors import ConfigError, ModelError, RunError
from greats_jax.models import read_shape
from greats_jax.training import Trainer, programs
from greats_jax.training.config import MeshConfig, ModelConfig
from greats_jax.training.config_loading import load_config
from greats_jax.training.out_of_memory import out_of_memory_explained
from greats_jax.training.planning import GIB, Estimate, Mode, Plan, estimate, gib, plan
from greats_jax.training.resolving import resolve

SHAPE = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}  # fmt: skip
LAYER = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64
PARAMETERS = 3 * LAYER + 2 * 512 * 64 + 64


@pytest.fixture
def planned(tmp_path):
    """A configuration of a model of which there is only config.json."""
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    (tmp_path / "run.yaml").write_text(f"{{model: {tmp_path}, data: {{sources: [nowhere], max_length: 64}}}}")
    return tmp_path / "run.yaml"


def estimated(path, *overrides, **mesh) -> Estimate:
    config = resolve(load_config(path, overrides))
    return estimate(config, read_shape(config.model.source), {"data": 1, "fsdp": 1, "tensor": 1} | mesh)


def test_what_is_kept_between_steps_is_exact(planned):
    adapted = estimated(planned, "lora.rank=2", "lora.targets=q_proj")
    adapters = 3 * 2 * (64 + 64)
    assert adapted.weights == 4 * PARAMETERS
    assert adapted.trained == 4 * adapters
    # Two moments, and the numbers of updates of the rule and of the schedule.
    assert adapted.optimizer == 2 * 4 * adapters + 8
    assert adapted.direction == 0
    full = estimated(planned, "lora=null", "scoring.passes=two", "scoring.micro_batches=2")
    assert (full.weights, full.trained, full.direction) == (0, 4 * PARAMETERS, 4 * PARAMETERS)


def test_bfloat16_halves_the_frozen_weights(planned):
    config = load_config(planned, ["model.dtype=bfloat16"])
    shape = read_shape(config.model.source, "bfloat16")
    mesh = {"data": 1, "fsdp": 1, "tensor": 1}
    assert estimate(resolve(config), shape, mesh).weights == 2 * PARAMETERS


def test_a_mesh_divides_what_it_cuts(planned):
    whole, cut = estimated(planned, "lora=null"), estimated(planned, "lora=null", fsdp=4)
    assert cut.trained < whole.trained / 3.9
    assert cut.optimizer < whole.optimizer / 3.9
    assert cut.activations < whole.activations / 3
    halves = estimated(planned, "lora=null", tensor=2)
    assert 0.45 < halves.logits / whole.logits < 0.55
    assert 0.4 < halves.trained / whole.trained < 0.55


def test_factors_are_those_of_one_pass(planned):
    one, two = (estimated(planned, f"scoring.passes={passes}", "batch=8") for passes in ("one", "two"))
    assert two.factors == 0
    # 8 candidates and 5 validation rows. With rows of 64 tokens the gradients of A and B (rank 8) of the four maps are
    # smaller than their factors, and are kept in their place.
    gradients = 3 * 8 * (4 * 64 + (64 + 32 + 32 + 64))
    assert one.factors == 4 * (8 + 5) * gradients


def test_modes_that_a_rule_cannot_have_are_left_out(planned):
    def modes(*overrides) -> set:
        return {(e.mode.passes, e.mode.micro_batches) for e in plan(load_config(planned, overrides), 1).estimates}

    assert modes("method=layer_wise", "model.remat=full") == {("one", 1)}
    assert modes("batch=2", "model.remat=full") == {("one", 1), ("two", 1), ("two", 2)}


def made(*totals: float, memory: float | None = None) -> Plan:
    modes = [Mode("one", 1, "none"), Mode("two", 1, "none"), Mode("two", 4, "full")]
    estimates = [Estimate(mode, round(total * GIB), *[0] * 7) for mode, total in zip(modes, totals, strict=True)]
    return Plan(tuple(estimates), {"data": 1, "fsdp": 1, "tensor": 1}, None if memory is None else round(memory * GIB))


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (made(4, 3, 2, memory=8), r"needs 4.0 GiB per device with scoring\.passes=one model\.remat=none, which fits"),
        (made(31.2, 18.4, 9, memory=24), "31.2 GiB .*too much for 24.0 GiB; scoring.passes=two .*=none needs 18.4"),
        (made(31, 18, 9, memory=4), "micro_batches=4 model.remat=full needs 9.0 GiB; for less still lower batch"),
        (made(2, 3, 4, memory=1), "too much for 1.0 GiB; no other mode needs less: lower batch"),
        (made(4, 3, 2), "4.0 GiB .*; scoring.passes=two scoring.micro_batches=4 model.remat=full needs 2.0 GiB"),
    ],
)  # fmt: skip
def test_the_advice_names_the_first_mode_that_fits(found, sentence):
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(found.advice)
    assert "\n" not in found.advice


def test_some_memory_stays_free():
    assert made(7.9, 1, 1, memory=8).fits(made(6, 1, 1).estimates[0])
    assert not made(7.9, 1, 1, memory=8).fits(made(7.9, 1, 1).estimates[0])


def test_sizes_are_written_as_people_write_them():
    assert [gib(x) for x in (0, 3 * 2**20, 1.25 * GIB)] == ["0 MiB", "3 MiB", "1.2 GiB"]


def test_the_command_prints_a_table_and_a_sentence(planned, capsys):
    arguments = ["plan", str(planned), "method=max_loss", "model.remat=full", "mesh.fsdp=2", "--devices", "4"]
    assert main([*arguments, "--memory", "1"]) == 0
    shown = capsys.readouterr().out
    assert "mesh data 2 x fsdp 2 x tensor 1" in shown
    assert "which fits in 1.0 GiB" in shown
    assert main([*arguments, "--memory", "0.0001"]) == 1
    assert "too much" in capsys.readouterr().out


def test_a_plan_needs_the_shape_of_a_model_and_as_many_devices_as_the_mesh(planned, tmp_path):
    with pytest.raises(ConfigError, match="there are 3"):
        plan(dataclasses.replace(load_config(planned), mesh=MeshConfig(fsdp=2)), 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no config\.json"):
        plan(dataclasses.replace(load_config(planned), model=ModelConfig(str(tmp_path / "empty"))), 1)


def test_a_full_device_is_explained_in_one_line(planned):
    config = load_config(planned, ["method=max_loss", "model.remat=full"])
    with (
        pytest.raises(
            RunError, match=r"out of memory on the device: by estimate a step needs .* lower batch"
        ) as caught,
        out_of_memory_explained(config),
    ):
        jax.numpy.zeros(2**46).block_until_ready()
    assert "\n" not in str(caught.value)
    with pytest.raises(ZeroDivisionError), out_of_memory_explained(config):
        raise ZeroDivisionError


def test_a_run_on_a_full_device_ends_with_advice(config_file, monkeypatch):
    def full(*arguments, **settings):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nAnd a long\ntable.")

    monkeypatch.setattr(programs, "configured_step", full)
    config = load_config(config_file, ["method=max_loss", "model.remat=full"])
    with pytest.raises(RunError, match="out of memory on the device: by estimate a step needs"):
        Trainer(config).fit()
