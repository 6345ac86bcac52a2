"""Comparison files: what they mean, what may be laid over them, and every mistake in one line that names its place."""

import re
from pathlib import Path

import pytest
import yaml
from tiny import tiny_config

from greats_jax.errors import ConfigError
from greats_jax.experiments.comparison_config import CONTROLS, load_comparison
from greats_jax.experiments.comparison_plan import plan_comparison
from greats_jax.training.config_loading import load_config


@pytest.fixture
def write(tiny_model, tiny_data, tmp_path):
    """Writes a comparison of the tiny training configuration."""
    (tmp_path / "tiny.yaml").write_text(tiny_config(tiny_model, tiny_data, tmp_path / "run"))

    def write_file(**keys) -> Path:
        path = tmp_path / "comparison.yaml"
        path.write_text(yaml.safe_dump({"train": str(tmp_path / "tiny.yaml"), "output": str(tmp_path / "out"), **keys}))
        return path

    return write_file


def planned(path, *overrides):
    return plan_comparison(load_comparison(path, overrides))


def test_controls_are_always_there_and_seeds_outermost(write):
    plan = planned(write(methods=["greats"], seeds=2))
    names = ["greats", *CONTROLS]
    assert [run.name for run in plan.runs] == [f"{name}-{seed}" for seed in (0, 1) for name in names]
    assert plan.methods == tuple(names)
    assert plan.asked == ("greats",)
    assert [run.config.method for run in plan.runs[:6]] == names
    assert [run.config.seed for run in plan.runs] == [0] * 6 + [1] * 6
    assert plan.runs[0].folder.parts[-3:] == ("out", "runs", "greats-0")


def test_a_control_that_is_asked_about_is_there_once(write):
    plan = planned(write(methods=["max_loss"], seeds=1))
    assert [run.method for run in plan.runs].count("max_loss") == 1
    assert plan.asked == ("max_loss",)


def test_runs_differ_in_method_seed_and_output_and_nothing_else(write):
    plan = planned(write(methods=["greats"], seeds=[3, 4], set={"steps": 9, "optimizer": {"learning_rate": 2e-3}}))
    for run in plan.runs:
        assert (run.config.steps, run.config.optimizer.learning_rate) == (9, 2e-3)
        assert run.config.optimizer.schedule == "constant"  # nested keys are laid over, not put in the place of all
        assert run.config.evaluate_every == 1  # about ten evaluations where the file says nothing
    assert {run.seed for run in plan.runs} == {3, 4}


def test_a_method_may_have_keys_of_its_own(write):
    cached = {"name": "greats, cached", "method": "greats", "set": {"validation": {"mode": "cached"}}}
    plan = planned(write(methods=["greats", cached], seeds=1, controls=["random_k", "regular"]))
    assert [run.name for run in plan.runs] == ["greats-0", "greats-cached-0", "random_k-0", "regular-0"]
    assert [run.config.validation.mode for run in plan.runs] == ["merged", "cached", "merged", "merged"]
    assert plan.variants == {"greats, cached": "greats with validation.mode=cached"}


def test_a_variant_of_a_control_may_have_its_name(write):
    own = {"name": "random_k", "method": "random_k", "set": {"keep": 2}}
    plan = planned(write(methods=["greats", own], seeds=1, controls=["random_k", "regular"]))
    assert [(run.method, run.config.keep) for run in plan.runs[:2]] == [("greats", 3), ("random_k", 2)]
    assert len(plan.runs) == 3


def test_one_setting_changes(write):
    vary = {"key": "optimizer.learning_rate", "values": [1.0e-4, "1e-3"]}
    plan = planned(write(methods=["greats"], seeds=1, controls=["random_k", "regular"], vary=vary))
    assert plan.settings == ("learning_rate=0.0001", "learning_rate=1e-3")
    assert [run.config.optimizer.learning_rate for run in plan.runs] == [1e-4] * 3 + [1e-3] * 3
    assert plan.runs[0].name == "learning_rate=0.0001-greats-0"


def test_a_value_may_be_several_keys_with_a_name(write):
    values = [{"name": "small", "batch": 4, "keep": 2}, {"name": "large", "batch": 8, "keep": 4}]
    plan = planned(write(methods=["greats"], seeds=1, controls=["regular"], vary={"values": values}))
    assert [(run.setting, run.config.batch, run.config.keep) for run in plan.runs if run.method == "greats"] == [
        ("small", 4, 2), ("large", 8, 4),
    ]  # fmt: skip


def test_the_command_line_is_laid_over_the_file(write, tmp_path):
    path = write(methods=["greats"], vary={"key": "batch", "values": [6]})
    config = load_comparison(
        path,
        [
            "seeds=0,7", "methods=max_loss,opus(temperature=0.5,share=1)", "controls=regular", "set.steps=4",
            "set.optimizer.learning_rate=2e-3", "vary.values=6,8", "keep_weights=true", f"output={tmp_path}/other",
        ],
    )  # fmt: skip
    assert config.seeds == (0, 7)
    assert [method.name for method in config.methods] == ["max_loss", "opus(temperature=0.5,share=1)"]
    assert [value.name for value in config.vary] == ["batch=6", "batch=8"]
    assert (config.keep_weights, config.output, config.controls) == (True, tmp_path / "other", ("regular",))
    run = config.train_config(config.vary[1], config.methods[0], 7, Path("x"))
    assert (run.batch, run.steps, run.optimizer.learning_rate, run.seed) == (8, 4, 2e-3, 7)
    assert load_comparison(path, ["vary=null", "seeds=3"]).seeds == (0, 1, 2)


def test_training_keys_may_stand_in_the_file_itself(write, tmp_path):
    tree = yaml.safe_load((tmp_path / "tiny.yaml").read_text())
    (run, *_) = planned(write(train=tree, methods=["greats"], seeds=1)).runs
    assert run.config.model == load_config(tmp_path / "tiny.yaml").model


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"train": None}, "train is not given in .*comparison.yaml: name a training configuration file"),
        ({"train": "nowhere.yaml"}, "nowhere.yaml: there is no such configuration file"),
        ({"seed": 3}, 'unknown key "seed" in .*; keys of the training go below set: set.seed'),
        ({"metods": ["greats"]}, 'unknown key "metods" in .*; did you mean "methods"'),
        ({"methods": ["graets"]}, "the runs of graets: method: .*graets"),
        ({"methods": [{"name": "x"}]}, "methods.0: .* is neither a rule nor"),
        (
            {"methods": [{"name": "target_only", "method": "greats"}]},
            'methods.0.name: "target_only" in .* is what a control is called, but the method is greats',
        ),
        ({"methods": ["greats", "Greats"]}, "methods in .* are not all different; give each a name"),
        ({"controls": ["randomk"]}, 'controls: "randomk" in .* did you mean "random_k"'),
        ({"seeds": 0}, "seeds: 0 in .* is neither a number of seeds nor a list"),
        ({"seeds": [1, -2]}, "seeds: .* is neither a number of seeds nor a list"),
        ({"target": "opus"}, 'target: "opus" in .* is not one of the methods'),
        ({"keep_weights": "maybe"}, 'keep_weights: "maybe" in .* is neither true nor false'),
        ({"set": [1]}, "set: .* is not a section of keys and values"),
        ({"set": {"stepz": 1}}, 'the runs of greats: unknown key "stepz" in .*comparison.yaml; did you mean "steps"'),
        ({"set": {"batch": 2}}, "the runs of greats: keep is 3, more than the 2 candidates of a batch"),
        ({"set": {"method": "opus"}}, "method in .* cannot be set in a comparison: methods says which"),
        ({"set": {"seed": 1}}, "seed in .* cannot be set in a comparison: seeds says which"),
        ({"set": {"epochs": 1}}, "the runs of greats: evaluate_every is null, but equal times are read off curves"),
        ({"set": {"distributed.detect": True}}, "distributed.detect in .* cannot be set in a comparison"),
        (
            {"vary": {"key": "compilation_cache", "values": ["a", "b"]}},
            "compilation_cache in .*: the runs of a comparison share one; put it into set",
        ),
        ({"vary": {"key": "batch"}}, "vary: .* is not {key: KEY, values"),
        ({"vary": {"values": [4]}}, "vary.values.0: 4 in .* is the value of no key; give vary.key"),
        ({"vary": {"key": "batch", "values": []}}, "vary.values in .* is empty"),
        ({"vary": {"key": "batch", "values": [4, 2]}}, "the runs of greats with batch=2: keep is 3, more than the 2"),
        (
            {"methods": [{"name": "x", "method": "greats", "set": {"stepz": 4}}]},
            'the runs of x: unknown key "stepz" in .*; did you mean "steps"',
        ),
        *(
            (
                {"methods": [{"name": "x", "method": "greats", "set": {key: value}}]},
                f"{key} of the method x in .*: what is compared must be the same for all methods; put it into set, or",
            )
            for key, value in {
                "lora.rank": 4,
                "measure": "never",
                "optimizer.learning_rate": 0.1,
                "update_weighting": "tokens",
            }.items()
        ),
    ],
)
def test_mistakes_are_told_before_anything_runs(write, keys, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        planned(write(**{"methods": ["greats"], "seeds": 1, **keys}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["seeds.0=1", "--seeds=3", "seeds"])
def test_what_is_no_override(write, text):
    with pytest.raises(ConfigError, match=re.escape(text)):
        load_comparison(write(methods=["greats"]), [text])


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parent.parent.parent / "configs" / "compare").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_every_comparison_of_the_project_is_valid(path, repository, monkeypatch):
    monkeypatch.chdir(repository)
    plan = planned(path)
    assert len({run.seed for run in plan.runs}) >= 5
    assert set(CONTROLS) <= set(plan.methods)


def test_sections_may_be_given_on_the_command_line(write):
    path = write(methods=["greats"])
    config = load_comparison(path, ["set={steps: 4}", "vary={key: batch, values: [6, 8]}"])
    assert config.set == ((("steps",), 4),)
    assert [value.name for value in config.vary] == ["batch=6", "batch=8"]
    with pytest.raises(ConfigError, match='seeds: "abc" in the command line is neither a number'):
        load_comparison(path, ["seeds=abc"])


def test_a_comparison_of_nothing_is_refused(write):
    with pytest.raises(ConfigError, match=r"methods is not given in .*; name at least one rule"):
        load_comparison(write())


def test_a_training_is_not_taken_for_a_comparison(write, tmp_path):
    write()
    with pytest.raises(
        ConfigError, match=r"tiny\.yaml: this file describes a training; name it in the file of a compar"
    ):
        load_comparison(tmp_path / "tiny.yaml")
