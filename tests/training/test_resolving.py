import dataclasses

import pytest

from greats_jax.data import DataConfig, SourceConfig
from greats_jax.errors import ConfigError
from greats_jax.models import LoraConfig
from greats_jax.training.config import ModelConfig, OptimizerConfig, ScoringConfig, TrainConfig, ValidationConfig
from greats_jax.training.resolving import kept, resolve, total_steps

CONFIG = TrainConfig(model=ModelConfig("m"), data=DataConfig(sources=(SourceConfig("a.jsonl"),)))


def changed(**values) -> TrainConfig:
    return dataclasses.replace(CONFIG, **values)


def test_resolving_fills_in_what_other_fields_determine():
    config = resolve(changed(batch=10, seed=3, method="max_loss"))
    assert config.keep == 5
    assert config.output == "runs/holdout-max_loss-3"
    assert resolve(config) == config


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"batch": 8}, 4),
        ({"batch": 8, "keep": 3}, 3),
        ({"batch": 8, "keep_fraction": 0.25}, 2),
        ({"batch": 8, "keep_fraction": 1.0}, 8),
        ({"batch": 1}, 1),
        ({"batch": 8, "keep": 3, "method": "regular"}, 8),
    ],
)
def test_kept(values, expected):
    assert kept(changed(**values)) == expected


def test_a_regular_run_as_a_template_does_not_make_others_keep_everything():
    regular = resolve(changed(batch=8, method="regular"))
    assert kept(dataclasses.replace(regular, method="greats")) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep": 9}, "keep is 9, more than the 8 candidates"),
        ({"keep": 0}, "keep is 0, but it must be at least 1"),
        ({"keep": 2, "keep_fraction": 0.5}, "both given"),
        ({"keep_fraction": 1.5}, "keep_fraction is 1.5"),
        ({"method": "greatz"}, "did you mean 'greats'"),
        ({"method": ""}, "is no selection rule"),
        ({"batch": 0}, "batch is 0"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 3, "epochs": 1.0}, "both given"),
        ({"epochs": 0.0}, "epochs is 0.0"),
        ({"accumulate": 0}, "accumulate is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"evaluate_every": 0}, "evaluate_every is 0"),
        ({"output": "runs/{name}"}, "placeholder"),
        ({"output": "runs/{"}, "placeholder"),
        ({"data": DataConfig()}, "data.sources names no file"),
        ({"optimizer": OptimizerConfig(learning_rate=0.0)}, "optimizer.learning_rate is 0.0"),
        ({"optimizer": OptimizerConfig(learning_rate=float("nan"))}, "optimizer.learning_rate is nan"),
        ({"optimizer": OptimizerConfig(b2=1.0)}, "optimizer.b2 is 1.0"),
        ({"optimizer": OptimizerConfig(clip=0.0)}, "optimizer.clip is 0.0"),
        ({"optimizer": OptimizerConfig(warmup=-1)}, "optimizer.warmup is -1"),
        ({"validation": ValidationConfig(per_step=0)}, "validation.per_step is 0"),
        ({"validation": ValidationConfig(refresh_every=4)}, "needs validation.mode=cached"),
        ({"scoring": ScoringConfig(micro_batches=2)}, "needs scoring.passes=two"),
        ({"scoring": ScoringConfig("two", micro_batches=3)}, "does not divide batch (8)"),
        ({"scoring": ScoringConfig(projection=0)}, "scoring.projection is 0"),
        ({"scoring": ScoringConfig(alignment="projected")}, "needs scoring.projection"),
        ({"scoring": ScoringConfig("two", 2, 64, "projected")}, "in the candidates' pass"),
        ({"scoring": ScoringConfig("two", upper_layers=1)}, "set scoring.passes=one"),
        ({"scoring": ScoringConfig(leaves="q_proj(")}, "is no regular expression"),
    ],
)
def test_contradictions_are_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        resolve(changed(**values))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"rank": -1}, {"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}])
def test_impossible_adapters_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        resolve(changed(lora=LoraConfig(**values)))


def test_epochs_count_candidates():
    assert total_steps(changed(batch=8, epochs=1.0), 100) == 13
    assert total_steps(changed(batch=8, epochs=2.0, accumulate=2), 100) == 13
    assert total_steps(changed(batch=8), 100) == 13
    assert total_steps(changed(batch=8, steps=5), 100) == 5


def test_a_seed_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="seed is"):
        resolve(changed(seed=10**20))
