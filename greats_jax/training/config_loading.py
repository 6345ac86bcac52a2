"""A YAML file and `key=value` overrides, turned into a `TrainConfig`; every mistake is one line that names the key.

The rules of reading are the same for the file and for overrides:

* A key is dotted: `lora.rank`. An item of a list has its number: `data.sources.0.weight`.
* A section that is given a plain text takes it as its first field: `model: gpt2` is `model: {source: gpt2}`, and
  `optimizer=sgd` over a file changes the name of the rule and nothing else.
* A list that is given one item takes it as its only one; on the command line items are separated by commas.
* A task that is named over another one (`task.name=gsm8k`) keeps nothing of that but how many examples are wanted.
* Numbers may be written 2e-5 (YAML alone would read that as text). `null` empties an optional key.
* Nothing is taken from the environment, so no secret can end in the resolved configuration.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from greats_jax.errors import ConfigError
from greats_jax.secrets import masked
from greats_jax.tasks import TaskConfig
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_values import (
    EMPTY,
    CommandLineText,
    Keys,
    Origin,
    convert,
    field_types,
    list_item,
    parse_yaml,
    section,
    unknown_key,
)

_INSTEAD = {"steps": "epochs", "epochs": "steps"}


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a configuration file and lay overrides over it.

    Args:
        path: A YAML file.
        overrides: Texts such as `lora.rank=16`; later ones win.

    Returns:
        The typed tree, not yet checked across fields (`resolve` does that).

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong; one line naming the key and where it stands.
    """
    settings = [split_override(text) for text in overrides]
    origin = Origin(str(path), tuple(keys for keys, _ in settings), TrainConfig)
    tree = read_tree(Path(path))
    if "train" in tree:
        raise ConfigError(f"{path}: this file describes a comparison: greats compare {path}")
    return from_tree(tree, settings, origin)


def from_tree(tree: Mapping[str, Any], settings: Sequence[tuple[Keys, Any]], origin: Origin) -> TrainConfig:
    """A typed tree from an untyped one with settings laid over it, by the rules of this module.

    Args:
        tree: Keys and values, as `read_tree` gives them; left as it is.
        settings: Keys from the root, as ("lora", "rank"), and the value there, from YAML or a `CommandLineText`; later
            ones win.
        origin: Where tree and settings were given, for messages.

    Raises:
        ConfigError: A key or value is wrong.
    """
    result: Any = _without_another_task(tree, settings)
    assigned: list[Keys] = []
    for keys, value in settings:
        result = _assign(TrainConfig, result, keys, 0, value, origin)
        assigned.append(keys)
        # Both say how long to train: one given here takes the place of the other in the file.
        other = _INSTEAD.get(keys[0])
        if other is not None and (other,) not in assigned:
            result[other] = None
    return convert(TrainConfig, result, (), origin)


def _without_another_task(tree: Mapping[str, Any], settings: Sequence[tuple[Keys, Any]]) -> dict[str, Any]:
    """The tree without what it says of its task, but for how many examples are wanted, where settings name another."""
    task = tree.get("task")
    name = task.get("name", TaskConfig.name) if isinstance(task, Mapping) else task
    named = [value for keys, value in settings if keys in (("task",), ("task", "name"))]
    if not isinstance(task, Mapping) or all(value == name for value in named):
        return dict(tree)
    return {**tree, "task": {key: value for key, value in task.items() if key in ("n_validation", "n_test")}}


def to_yaml(config: TrainConfig) -> str:
    """The tree as YAML that `load_config` reads back to an equal tree, but for secrets, which are masked."""
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=120)


def plain(config: TrainConfig) -> dict[str, Any]:
    """The tree as dictionaries and lists, for what leaves the process: secrets are masked."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    """Tuples as lists, which is what YAML has; texts without the secrets in them."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def dotted(tree: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a tree that `plain` made; an empty section or list is a value."""
    if isinstance(tree, (dict, list)) and tree:
        for name, item in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from dotted(item, f"{above}.{name}" if above else str(name))
    else:
        yield above, tree


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error instead of the last one silently winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key that is a list or section", node.start_mark)
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f'the key "{key_node.value}" is given twice', key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_tree(path: Path) -> dict[str, Any]:
    """What a YAML file says, untyped.

    Raises:
        ConfigError: It cannot be read, or holds something else than keys and values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration file ({error})") from None
    tree = parse_yaml(text, _UniqueKeyLoader, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a configuration file holds lines of the form key: value, but this one does not")
    return tree


def split_override(text: str) -> tuple[Keys, CommandLineText]:
    """`lora.rank=16` as (("lora", "rank"), "16").

    Raises:
        ConfigError: It has another form.
    """
    key, equals, value = text.partition("=")
    if key.startswith("-"):
        raise ConfigError(f'"{text}": overrides are written without dashes, as lora.rank=16')
    if not equals or not key:
        raise ConfigError(f'"{text}" is not an override; write key=value, as lora.rank=16')
    return tuple(key.split(".")), CommandLineText(value)


def _assign(kind: Any, tree: Any, keys: tuple[str, ...], depth: int, value: Any, origin: Origin) -> Any:
    """`tree` with the value at `keys[depth:]` replaced; `kind` is the type that belongs at this depth."""
    if depth == len(keys):
        return _replaced(kind, tree, value)
    key = keys[depth]
    if (cls := section(kind)) is not None:
        types = field_types(cls)
        if key not in types:
            raise unknown_key(keys[: depth + 1], cls, origin)
        first = next(iter(types))
        # A section that was given as a plain text keeps it as its first field.
        tree = dict(tree) if isinstance(tree, dict) else {} if tree is None else {first: tree}
        return tree | {key: _assign(types[key], tree.get(key), keys, depth + 1, value, origin)}
    if (item := list_item(kind)) is not None:
        items = list(tree) if isinstance(tree, (list, tuple)) else [] if tree is None else [tree]
        if not (key.isdecimal() and len(key) < 6 and int(key) <= len(items)):
            raise ConfigError(
                f"{'.'.join(keys)}: {'.'.join(keys[:depth])} is a list of {len(items)}; name an item by its number, "
                f"{len(items)} for a new one"
            )
        items.extend([None] * (int(key) + 1 - len(items)))
        items[int(key)] = _assign(item, items[int(key)], keys, depth + 1, value, origin)
        return items
    raise ConfigError(f"{'.'.join(keys)}: {'.'.join(keys[:depth])} is a single value and has no keys below it")


def _replaced(kind: Any, tree: Any, value: Any) -> Any:
    """A new value in the place of `tree`; a word for a section that is there changes only its first field."""
    is_word = (
        isinstance(value, str)
        and value.strip() != ""
        and not value.strip().startswith("{")
        and value.lower() not in EMPTY
    )
    if (cls := section(kind)) is not None and is_word and isinstance(tree, dict):
        return tree | {next(iter(field_types(cls))): value}
    return value
