import dataclasses

import pytest

from greats_jax.errors import ConfigError
from greats_jax.tasks import TaskConfig
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import load_config, to_yaml
from greats_jax.training.resolving import resolve

BASE = """
model: some/model
data:
  sources:
    - a.jsonl
    - {path: b.jsonl, weight: 2}
  percentage: 50
lora: {rank: 4, targets: [q_proj]}
keep: 3
optimizer:
  learning_rate: 1e-3
steps: 7
"""


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base.yaml"
    path.write_text(BASE.replace("a.jsonl\n", "{path: a.jsonl, weight: 1}\n"))
    return path


def test_values_have_the_types_of_their_fields(base):
    config = load_config(base)
    assert config.model.source == "some/model"
    assert [source.path for source in config.data.sources] == ["a.jsonl", "b.jsonl"]
    assert config.data.sources[1].weight == 2.0
    assert config.data.percentage == 50.0
    assert config.lora is not None
    assert config.lora.rank == 4
    assert config.lora.targets == ("q_proj",)
    # YAML 1.1 reads 1e-3 as text; a number is what everyone means.
    assert config.optimizer.learning_rate == 1e-3
    assert config.steps == 7


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("lora.rank=16", lambda c: c.lora.rank, 16),
        ("lora=null", lambda c: c.lora, None),
        ("lora={rank: 2}", lambda c: c.lora.rank, 2),
        ("lora.targets=k_proj,v_proj", lambda c: c.lora.targets, ("k_proj", "v_proj")),
        ("lora.targets=[k_proj, v_proj]", lambda c: c.lora.targets, ("k_proj", "v_proj")),
        ("seed=3", lambda c: c.seed, 3),
        ("steps=1e3", lambda c: c.steps, 1000),
        ("steps=null", lambda c: c.steps, None),
        ("optimizer.learning_rate=2e-05", lambda c: c.optimizer.learning_rate, 2e-5),
        ("optimizer.clip=none", lambda c: c.optimizer.clip, None),
        # A word for a section changes its first field and nothing else.
        ("optimizer=sgd", lambda c: (c.optimizer.name, c.optimizer.learning_rate), ("sgd", 1e-3)),
        ("model=other", lambda c: c.model.source, "other"),
        ("model.dtype=bfloat16", lambda c: (c.model.source, c.model.dtype), ("some/model", "bfloat16")),
        ("data.sources.1.path=c.jsonl", lambda c: [s.path for s in c.data.sources], ["a.jsonl", "c.jsonl"]),
        ("data.sources=c.jsonl,d.jsonl", lambda c: [s.path for s in c.data.sources], ["c.jsonl", "d.jsonl"]),
        ("data.group_by_length=true", lambda c: c.data.group_by_length, True),
        # Text stays text, whatever it looks like to YAML.
        ("data.sources.0.name=2024", lambda c: c.data.sources[0].name, "2024"),
        ("output=runs/a=b", lambda c: c.output, "runs/a=b"),
        ("trackers=tensorboard,wandb", lambda c: c.trackers, ("tensorboard", "wandb")),
    ],
)
def test_an_override_changes_one_value(base, override, get, value):
    assert get(load_config(base, [override])) == value


def test_a_new_item_can_be_added_to_a_list(base):
    config = load_config(base, ["data.sources.2.path=c.jsonl", "data.sources.2.weight=3"])
    assert [(source.path, source.weight) for source in config.data.sources][2] == ("c.jsonl", 3.0)


def test_the_last_override_wins(base):
    assert load_config(base, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("lora.rnk=3", 'unknown key "lora.rnk" on the command line; did you mean "lora.rank"?'),
        ("learning_rate=1", 'did you mean "optimizer.learning_rate"?'),
        ("data.sources.0.weigth=2", 'did you mean "data.sources.0.weight"?'),
        ("metod=greats", 'did you mean "method"?'),
        ("lora.rank=many", 'lora.rank: "many" on the command line is not a whole number'),
        ("seed=1.5", 'seed: "1.5" on the command line is not a whole number'),
        ("batch=true", "is not a whole number"),
        ("optimizer.learning_rate=fast", "is not a number"),
        ("optimizer.learning_rate=.nan", "is not a number"),
        ("optimizer.learning_rate=inf", "is not a number"),
        ("data.group_by_length=2", "is not true or false"),
        ("model.dtype=float23", 'not one of float32, bfloat16; did you mean "float32"?'),
        ("optimizer.schedule=linar", 'did you mean "linear"?'),
        ("trackers=tensorbord", 'did you mean "tensorboard"?'),
        ("data.sources.5.path=x", "is a list of 2"),
        ("data.sources.one.path=x", "is a list of 2"),
        ("steps.x=3", "steps is a single value"),
        ("seed", "write key=value"),
        ("--seed=1", "without dashes"),
        ("=1", "write key=value"),
        ("data.packing=true", "packing"),
        ("data.percentage=0", "data.percentage"),
        ("lora={rank", "cannot be read as a value"),
        ("batch=null", "batch"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_the_key(base, override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(base, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\nlora: {rnk: 3}\n", 'unknown key "lora.rnk" in '),
        ("model: m\nseed: one\n", 'seed: "one" in '),
        ("model: m\nmodel: n\n", ':2: not valid YAML: the key "model" is given twice'),
        ("model: m\nlora: {rank: 3\n", "not valid YAML"),
        ("model: m\nseed: [1\n", "not valid YAML"),
        ("- a\n- b\n", "key: value"),
        ("steps: 3\n", "model is not given"),
        ("model: m\nlora: 3\n", "lora: 3 in "),
        ("model: {dtype: float32}\n", "model.source is not given"),
        ("model: m\ndata: {sources: [{weight: 1}]}\n", "data.sources.0.path is not given"),
        ("model: 5\n", "model: 5 in "),
        ("model: m\nmethod: [greats]\n", "method: "),
        ("model: m\n5: x\n", 'unknown key "5"'),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_place(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: there is no such"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_a_written_configuration_reads_back_equal(base, tmp_path):
    config = resolve(load_config(base, ["lora.dropout=0.1", "optimizer.eps=1e-9", "trackers=wandb"]))
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config
    full = dataclasses.replace(config, lora=None)
    (tmp_path / "again.yaml").write_text(to_yaml(full))
    assert load_config(tmp_path / "again.yaml") == full


def test_the_environment_never_enters_the_configuration(base, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "not-to-be-written")
    text = to_yaml(resolve(load_config(base, ["trackers=wandb", "output=runs/$WANDB_API_KEY"])))
    assert "not-to-be-written" not in text


def test_every_shipped_configuration_resolves():
    from pathlib import Path

    paths = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    assert paths
    for path in paths:
        assert isinstance(resolve(load_config(path)), TrainConfig)


def test_steps_on_the_command_line_take_the_place_of_epochs_in_the_file(base):
    assert load_config(base, ["epochs=2"]).steps is None
    assert load_config(base, ["epochs=2", "steps=3"]) == load_config(base, ["steps=3", "epochs=2"])
    with pytest.raises(ConfigError, match="both given"):
        resolve(load_config(base, ["epochs=2", "steps=3"]))


@pytest.mark.parametrize("over", ["task.name=mmlu", "task=mmlu", "task={name: mmlu, subject: anatomy, n_test: 9}"])
def test_a_task_named_over_another_keeps_nothing_of_it_but_how_much_is_wanted(base, over):
    base.write_text(base.read_text() + "task: {name: examples, path: a.jsonl, test_path: b.jsonl, n_test: 9}\n")
    task = load_config(base, ["task.subject=anatomy", over]).task if "{" not in over else load_config(base, [over]).task
    assert task == TaskConfig("mmlu", subject="anatomy", n_test=9)
    same = load_config(base, ["task.name=examples", "task.n_validation=3"]).task
    assert (same.path, same.test_path, same.n_validation) == ("a.jsonl", "b.jsonl", 3)


def test_a_comparison_is_not_taken_for_a_training(tmp_path):
    (tmp_path / "compare.yaml").write_text("train: mine.yaml\nmethods: [greats]\n")
    with pytest.raises(ConfigError, match=r"this file describes a comparison: greats compare .*compare\.yaml"):
        load_config(tmp_path / "compare.yaml")


def test_training_needs_a_validation_example(base):
    with pytest.raises(ConfigError, match=r"task\.n_validation is 0, but it must be at least 1: these steer"):
        resolve(load_config(base, ["task.n_validation=0"]))
