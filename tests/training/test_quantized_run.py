"""A run on a frozen base in 4 bits, from the configuration to merged weights."""

import importlib.util

import jax
import numpy as np
import pytest

from greats_jax.cli import main
from greats_jax.errors import ConfigError
from greats_jax.models import from_pretrained
from greats_jax.training.config_loading import load_config
from greats_jax.training.resolving import resolve
from greats_jax.training.result import RunResult


def test_what_trains_is_not_quantised(config_file):
    with pytest.raises(ConfigError, match=r"model.quantize is int8, which only a frozen model can be: set lora"):
        resolve(load_config(config_file, ["model.quantize=int8", "lora=null"]))


@pytest.mark.skipif(importlib.util.find_spec("qwix") is None, reason="needs the extra quantize")
@pytest.mark.slow
def test_adapters_train_on_four_bits_and_merge(config_file, tmp_path, capsys):
    assert main(["train", str(config_file), "model.quantize=nf4", "steps=1", "method=regular"]) == 0, (
        capsys.readouterr().err
    )
    result = RunResult.load(tmp_path / "run")
    assert result.status == "finished"
    assert main(["export", str(tmp_path / "run"), "merged", str(tmp_path / "merged")]) == 0
    ids = jax.numpy.asarray([[1, 2, 3, 4]])
    merged, plain = (from_pretrained(source)(ids) for source in (tmp_path / "merged", result.config.model.source))
    # Far from the base by the rounding, and near it all the same.
    assert 1e-3 < np.abs(merged - plain).max() < 1
