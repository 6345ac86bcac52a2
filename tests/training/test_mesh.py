"""How devices become a mesh, and whole runs on one."""

import numpy as np
import pytest
from tiny import tiny_config

from greats_jax.errors import ConfigError
from greats_jax.training import Trainer, load_config
from greats_jax.training.config import MeshConfig
from greats_jax.training.jsonl import read_json_lines
from greats_jax.training.mesh import make_mesh, mesh_shape
from greats_jax.training.run_folder import SELECTIONS


def test_an_open_axis_takes_the_devices_that_are_left():
    assert mesh_shape(MeshConfig(), 8) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert mesh_shape(MeshConfig(data=2, fsdp=-1, tensor=2), 8) == {"data": 2, "fsdp": 2, "tensor": 2}


def test_a_mesh_may_use_some_of_the_devices_of_one_process():
    assert make_mesh(MeshConfig(2, 2, 1)).devices.size == 4


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(-1, -1, 1), "leaves more than one axis open"),
        (MeshConfig(-1, 3, 1), "needs a multiple of 3 devices, but there are 8"),
        (MeshConfig(16, 1, 1), "needs 16 devices, but there are 8"),
        (MeshConfig(-1, 1, 0), "has a size below 1"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(config, words):
    with pytest.raises(ConfigError, match=words):
        mesh_shape(config, 8)


@pytest.fixture
def configured(tiny_model, tiny_data, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_config(tiny_model, tiny_data, tmp_path / "run"))
    return lambda *overrides: load_config(path, ["batch=8", "keep=4", *overrides])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["batch=6", "mesh.data=4"], "cuts rows into 4 parts, which batch .6. does not divide into"),
        (["mesh.data=2", "scoring.passes=two", "scoring.micro_batches=8"], "set batch to a multiple of 16"),
        (["mesh.data=4", "scoring.scope=per_device", "keep=6"], "to a multiple of 4, or raise batch"),
        (
            ["mesh.data=2", "scoring.scope=per_device", "scoring.passes=two", "scoring.micro_batches=2"],
            "both cut a batch",
        ),
    ],
)
def test_batches_that_devices_cannot_share_evenly_are_refused(configured, overrides, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        Trainer(configured(*overrides)).fit()
    assert not (tmp_path / "run").exists()


def selections(configured, output, *overrides):
    result = Trainer(configured(f"output={output}", *overrides)).fit()
    return read_json_lines(result.folder / SELECTIONS), result.summary


def test_a_run_on_a_mesh_makes_the_choices_of_a_run_on_one_device(configured, tmp_path):
    alone, summary = selections(configured, tmp_path / "alone")
    together, spread = selections(configured, tmp_path / "together", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")
    for one, other in zip(alone, together, strict=True):
        assert one["chosen"] == other["chosen"]
        np.testing.assert_allclose(one["scores"], other["scores"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(summary["after"]["test_loss"], spread["after"]["test_loss"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["regular", "random_k", "max_loss", "target_only", "rho_loss"])
def test_every_kind_of_method_runs_on_a_mesh(configured, tmp_path, method):
    alone, _ = selections(configured, tmp_path / "alone", f"method={method}")
    together, _ = selections(configured, tmp_path / "together", f"method={method}", "mesh.data=4", "mesh.fsdp=2")
    assert [one["chosen"] for one in alone] == [other["chosen"] for other in together]


def test_devices_that_choose_apart_keep_the_same_number_each(configured, tmp_path):
    chosen, _ = selections(configured, tmp_path / "apart", "mesh.data=4", "scoring.scope=per_device")
    for one in chosen:
        places = sorted(one["candidates"].index(name) // 2 for name in one["chosen"])
        assert places == [0, 1, 2, 3]
