"""Configuration files and overrides."""

import dataclasses

import pytest
import yaml
from fuzzing import bounded, examples, fuzz, mutated, texts, values
from hypothesis import strategies as st

from greats_jax.data.records import find_files
from greats_jax.errors import ConfigError, GreatsError
from greats_jax.models.sources import locate
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import load_config, to_yaml
from greats_jax.training.config_values import all_keys
from greats_jax.training.own_rules import load_rules
from greats_jax.training.resolving import resolve

VALID = """\
# A run of every kind of value.
model: {source: some/model, dtype: bfloat16}
data:
  sources: [a.jsonl, {path: b.jsonl, name: "b é", format: text}]
  max_length: 128
task: {name: examples, path: v.jsonl}
lora: {rank: 4, alpha: 8, targets: [q_proj, v_proj]}
method: 0.5*normalised(greats) + 0.5*uds
batch: 8
keep_fraction: 0.5
epochs: 1.5
optimizer: {name: adamw, learning_rate: 2e-5, clip: null}
validation: {mode: cached, refresh_every: 4}
scoring: {passes: two, leaves: "q_proj|v_proj"}
output: runs/{task}-{method}-{seed}
trackers: []
seed: 3
"""
KEYS = sorted(all_keys(TrainConfig))


def read(path, overrides=()) -> None:
    """Loads, checks, and reads back what a run would save."""
    config = load_config(path, overrides)
    again = path.with_name("again.yaml")
    again.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(again) == config
    resolve(config)


@examples
def test_a_damaged_configuration_is_refused_or_read(examples, tmp_path):
    path = tmp_path / "config.yaml"

    def load(raw: bytes) -> None:
        path.write_bytes(raw)
        read(path)

    fuzz(load, mutated(VALID.encode()), examples)


@examples
def test_any_value_of_any_key_is_refused_or_read(examples, tmp_path):
    path = tmp_path / "config.yaml"
    strange = st.one_of(values, st.dictionaries(st.sampled_from([key.split(".")[-1] for key in KEYS]), values))

    def load(change: tuple[str, object]) -> None:
        key, value = change
        *above, last = key.split(".")
        tree = node = yaml.safe_load(VALID)
        for name in above:
            if name == "0":
                break
            if not isinstance(node.get(name), dict):
                node[name] = {}
            node = node[name]
        node[last] = value
        try:
            path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        except (UnicodeEncodeError, ValueError):  # half of a surrogate pair cannot be written, nor an endless number
            path.write_text(yaml.safe_dump({"model": "m", last: None}))
        read(path)

    fuzz(load, st.tuples(st.sampled_from(KEYS), strange), examples)


@examples
def test_any_override_is_refused_or_read(examples, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(VALID, encoding="utf-8")
    keys = st.one_of(
        st.sampled_from(KEYS),
        st.lists(
            st.one_of(
                st.sampled_from(["model", "data", "sources", "0", "1", "2", "-1", "²", "task", "lora", "rank"]), texts
            ),
            max_size=4,
        ).map(".".join),
    )
    said = st.one_of(
        texts,
        values.map(str),
        st.sampled_from(
            [
                "[",
                "{",
                "[a",
                "{a}",
                "[a]:b",
                "{a:1}",
                "1e400",
                ".inf",
                ".nan",
                "1_0",
                "0x",
                "0b",
                "0o8",
                "2024-13-45",
                "!!int",
                "&",
                "*",
                "~",
                "1:99",
                "[]",
                "{}",
            ]
        ),
    )

    def load(overrides: list[tuple[str, str]]) -> None:
        read(path, [f"{key}={value}" for key, value in overrides])

    fuzz(load, st.lists(st.tuples(keys, said), min_size=1, max_size=3), examples)


@pytest.mark.parametrize(
    "text",
    [
        "? [a, b]\n: c",
        "steps: " + "9" * 5000,
        "optimizer: {learning_rate: 1" + "0" * 400 + "}",
        "model: 2024-13-45",
        "seed: !!int x",
        "seed: !!float x",
        "model: !!timestamp x",
        "model: !!python/object/apply:os.system [exit]",
        "model: !!binary '*'",
        "[" * 5000,
        "model: &a {source: *a}",
        "data: &a {sources: [*a]}",
        'model: "\\ud800"',
        "\x00",
        "model: m\nseed: 0b",
        "model: m\n1: 2",
        "model: m\nnull: 2",
    ],
    ids=range(17),
)
def test_a_file_that_breaks_the_parser_is_one_line(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(str(caught.value).splitlines()) == 1
    assert "config.yaml" in str(caught.value) or text.startswith("data: &a"), "it does not say which file"


@pytest.mark.parametrize("key", ["model", "lora", "steps", "method", "trackers", "data.sources", "lora.targets"])
def test_a_file_that_grows_without_end_is_refused_at_once(key, tmp_path):
    """Half a kilobyte of YAML that stands for a thousand million words."""
    value = "[lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"
    for depth in range(8):
        value = f"[&x{depth} {value}{f', *x{depth}' * 9}]"
    section, _, name = key.partition(".")
    path = tmp_path / "config.yaml"
    path.write_text(f"{section}: {{{name}: {value}}}" if name else f"{section}: {value}", encoding="utf-8")
    with bounded(seconds=5, extra=2**30), pytest.raises(ConfigError) as caught:
        load_config(path)
    assert len(str(caught.value)) < 500


def test_every_key_of_the_tree_can_be_overridden_wrongly(tmp_path):
    """No key falls through to an error of Python's own, whatever its type."""
    path = tmp_path / "config.yaml"
    path.write_text("model: m\ndata: {sources: [a]}\n")
    for key in KEYS:
        for value in ("[", "{", "1" + "0" * 400, "2024-13-45", "\udcff", ""):
            try:
                config = load_config(path, [f"{key}={value}"])
            except ConfigError:
                continue
            assert dataclasses.is_dataclass(config)
            to_yaml(config).encode("utf-8")


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-of-this-name/x", "a\0b", "[" * 300], ids=range(4))
def test_a_path_that_no_file_can_have_is_one_line(path):
    for use in (load_config, locate, find_files, lambda file: load_rules([file])):
        with pytest.raises(GreatsError):
            use(path)
