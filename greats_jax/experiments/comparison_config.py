"""What a comparison is told: one training configuration, and the methods, seeds and one setting that it is run with."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from greats_jax.errors import ConfigError
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import from_tree, read_tree, split_override
from greats_jax.training.config_values import EMPTY, CommandLineText, Keys, Origin, parse_yaml, shown
from greats_jax.training.spelling import nearest

CONTROLS = ("regular", "random_k", "greats_first_order", "max_loss", "target_only")
"""What every table shows beside the methods that are asked about."""

Settings = tuple[tuple[Keys, Any], ...]
"""Dotted keys of a training configuration and their values."""

_OF_THE_RUNNER = {
    "method": "methods says which",
    "seed": "seeds says which",
    "output": "the comparison's own output says where",
    "distributed": "runs of a comparison are of one process",
}
# What and how much a rule chooses from, how it scores, and for how long. All else would be a difference that is none of
# the rule's: a rate tuned for one method, scores measured of one.
_OF_A_METHOD = (
    "rules", "batch", "keep", "keep_fraction", "accumulate", "steps", "epochs", "validation", "scoring", "reference",
    "embedding",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A method, or a value of the changing setting, by the name that tables show.

    Attributes:
        name: The name; of a comparison without a changing setting, "".
        settings: Keys of the training configuration that it sets.
    """

    name: str
    settings: Settings


@dataclass(frozen=True)
class ComparisonConfig:
    """One comparison, as `load_comparison` reads it.

    Attributes:
        train: The training configuration that all runs share: a file, or the keys themselves.
        set: Keys laid over it, dotted or nested: {steps: 20, optimizer.learning_rate: 1e-3}.
        methods: Rules that are asked about; an item may be {name: TEXT, method: RULE, set: {...}}.
        controls: What they are compared with, in the same table: regular, random_k, greats_first_order, max_loss and
            target_only, all of them unless fewer are named.
        seeds: The seeds, or how many, counted from 0 (default: 5).
        vary: The one setting that changes: {key: KEY, values: [...]}; a value may be {name: TEXT, KEY: VALUE, ...}.
        target: The method whose final loss the others have to reach in time-to-target (default: regular).
        keep_weights: Keep the weights and checkpoints of runs that have finished (default: false).
        output: The comparison's folder (default: runs/ and the name of the file).
        file: Where it was read.
    """

    train: dict[str, Any]
    set: Settings
    methods: tuple[Variant, ...]
    controls: tuple[str, ...]
    seeds: tuple[int, ...]
    vary: tuple[Variant, ...]
    target: str
    keep_weights: bool
    output: Path
    file: str

    def train_config(self, value: Variant, method: Variant, seed: int, output: Path) -> TrainConfig:
        """The configuration of one run, not yet checked across fields.

        Raises:
            ConfigError: A key or value is wrong.
        """
        own: Settings = ((("seed",), seed), (("output",), str(output)))
        settings = (*self.set, *value.settings, *method.settings, *own)
        return from_tree(self.train, settings, Origin(self.file, (), TrainConfig))


_MOST_SEEDS = 10_000
_KEYS = ("train", "set", "methods", "controls", "seeds", "vary", "target", "keep_weights", "output")


def load_comparison(path: str | Path, overrides: Sequence[str] = ()) -> ComparisonConfig:
    """Read a comparison file and lay overrides over it.

    Args:
        path: A YAML file.
        overrides: Texts such as `seeds=3`, `methods=greats,opus` or `set.optimizer.learning_rate=1e-3`.

    Raises:
        ConfigError: The file cannot be read, or a key or value is wrong.
    """
    file = str(path)
    tree = read_tree(Path(path))
    place: defaultdict[str, str] = defaultdict(lambda: file)
    changes: list[tuple[Keys, Any]] = []
    for text in overrides:
        (first, *rest), value = split_override(text)
        place[first] = "the command line"
        if first == "set" and rest:
            changes.append((tuple(rest), value))
        elif first == "vary" and len(rest) == 1:
            tree["vary"] = {**(tree["vary"] if isinstance(tree.get("vary"), Mapping) else {}), rest[0]: value}
        elif rest:
            raise ConfigError(f"{text}: {first} has no key below it; keys of the training go below set, as set.steps=9")
        else:
            tree[first] = _typed(value, first)
    if "model" in tree and "train" not in tree:
        raise ConfigError(
            f"{file}: this file describes a training; name it in the file of a comparison, as train: {file}"
        )
    for key in tree:
        if key not in _KEYS:
            raise _unknown(str(key), file)
    config = ComparisonConfig(
        train=_train(tree.get("train"), file),
        set=(*_settings(tree.get("set"), "set", place["set"]), *changes),
        methods=_methods(tree.get("methods"), place["methods"]),
        controls=_controls(tree.get("controls"), place["controls"]),
        seeds=_seeds(tree.get("seeds", 5), place["seeds"]),
        vary=_vary(tree.get("vary"), place["vary"]),
        target=_text(tree.get("target", "regular"), "target", place["target"]),
        keep_weights=_truth(tree.get("keep_weights", False), "keep_weights", place["keep_weights"]),
        output=Path(_text(tree.get("output", f"runs/{Path(path).stem}"), "output", place["output"])),
        file=file,
    )
    _check(config)
    return config


def all_methods(config: ComparisonConfig) -> tuple[Variant, ...]:
    """The methods that are asked about, then the controls that are not among them."""
    asked = {method.name for method in config.methods}
    controls = (Variant(name, ((("method",), name),)) for name in config.controls if name not in asked)
    return (*config.methods, *controls)


def described(method: Variant) -> str:
    """The rule of a method and what it sets besides; the method's name where this is the rule, and it sets nothing."""
    (_, rule), *rest = method.settings
    own = ", ".join(f"{'.'.join(keys)}={_as_text(value)}" for keys, value in rest)
    return f"{rule} with {own}" if own else str(rule)


def file_name(name: str) -> str:
    """A name as a part of a path."""
    return re.sub(r"[^\w.=+]+", "-", name).strip("-.")


def _check(config: ComparisonConfig) -> None:
    names = [method.name for method in all_methods(config)]
    for what, every in ("methods", names), ("vary.values", [value.name for value in config.vary]):
        if len({file_name(name).lower() for name in every}) < len(every):
            raise ConfigError(f"{what} in {config.file}: {', '.join(every)} are not all different; give each a name")
    if config.target not in names:
        raise ConfigError(
            f"target: {shown(config.target)} in {config.file} is not one of the methods {', '.join(names)}"
        )
    shared = [*config.set, *(pair for value in config.vary for pair in value.settings)]
    for keys, _ in [*shared, *(pair for method in config.methods for pair in method.settings[1:])]:
        if keys[0] in _OF_THE_RUNNER:
            raise ConfigError(
                f"{'.'.join(keys)} in {config.file} cannot be set in a comparison: {_OF_THE_RUNNER[keys[0]]}"
            )
    for method in config.methods:
        for keys, _ in method.settings[1:]:
            if keys[0] in TrainConfig.__dataclass_fields__ and keys[0] not in _OF_A_METHOD:
                raise ConfigError(
                    f"{'.'.join(keys)} of the method {method.name} in {config.file}: what is compared must be the same "
                    "for all methods; put it into set, or into vary"
                )


def _typed(value: CommandLineText, key: str) -> Any:
    """A value of the command line; a section is read as YAML."""
    if value.lower() in EMPTY:
        return None
    return parse_yaml(value, yaml.SafeLoader, key) if value.strip().startswith("{") else value


def _train(value: Any, file: str) -> dict[str, Any]:
    if isinstance(value, str):
        tree = read_tree(Path(value))
        from_tree(tree, (), Origin(value, (), TrainConfig))  # its own mistakes are told with its own name
        return tree
    if isinstance(value, Mapping):
        return dict(value)
    raise ConfigError(f"train is not given in {file}: name a training configuration file, or write its keys there")


def _settings(value: Any, where: str, file: str) -> Settings:
    """A mapping of dotted or nested keys as pairs."""
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {shown(value)} in {file} is not a section of keys and values, as {{steps: 20}}")
    return tuple(_flat(value))


def _flat(value: Mapping[Any, Any], above: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for key, item in value.items():
        keys = (*above, *str(key).split("."))
        if isinstance(item, Mapping) and item:
            yield from _flat(item, keys)
        else:
            yield keys, item


def _methods(value: Any, file: str) -> tuple[Variant, ...]:
    found = []
    for number, item in enumerate(_list(value, "methods", file)):
        if isinstance(item, str):
            found.append(Variant(str(item), ((("method",), str(item)),)))
            continue
        where = f"methods.{number}"
        if not isinstance(item, Mapping) or not set(item) <= {"name", "method", "set"} or "method" not in item:
            raise ConfigError(
                f"{where}: {shown(item)} in {file} is neither a rule nor {{name: TEXT, method: RULE, set: {{...}}}}"
            )
        rule = _text(item["method"], f"{where}.method", file)
        name = _text(item.get("name", rule), f"{where}.name", file)
        if name in CONTROLS and not re.fullmatch(rf"{name}\s*(\([^()]*\))?", rule.strip()):
            raise ConfigError(
                f"{where}.name: {shown(name)} in {file} is what a control is called, but the method is {rule}; give it "
                "another name"
            )
        found.append(Variant(name, ((("method",), rule), *_settings(item.get("set"), f"{where}.set", file))))
    if not found:
        raise ConfigError(f"methods is not given in {file}; name at least one rule, as methods: [greats]")
    return tuple(found)


def _controls(value: Any, file: str) -> tuple[str, ...]:
    if value is None:
        return CONTROLS
    names = tuple(_text(item, "controls", file) for item in _list(value, "controls", file))
    for name in names:
        if name not in CONTROLS:
            raise ConfigError(
                f"controls: {shown(name)} in {file} is not one of {', '.join(CONTROLS)}; "
                f'did you mean "{nearest(name, CONTROLS)}"?'
            )
    return tuple(dict.fromkeys(names))


def _seeds(value: Any, file: str) -> tuple[int, ...]:
    if isinstance(value, CommandLineText) and "," not in value and value.isdigit():
        value = int(value)
    items: list[Any] = []
    if isinstance(value, int) and not isinstance(value, bool):
        items = list(range(min(value, _MOST_SEEDS)))
    elif value is not None:
        items = _list(value, "seeds", file)
    if not items or not all(str(item).isdecimal() and int(item) < 2**32 for item in items):
        raise ConfigError(f"seeds: {shown(value)} in {file} is neither a number of seeds nor a list, as [0, 1, 2]")
    return tuple(dict.fromkeys(int(item) for item in items))


def _vary(value: Any, file: str) -> tuple[Variant, ...]:
    if value is None:
        return (Variant("", ()),)
    if not isinstance(value, Mapping) or not set(value) <= {"key", "values"} or "values" not in value:
        raise ConfigError(
            f"vary: {shown(value)} in {file} is not {{key: KEY, values: [...]}}, as "
            "{key: optimizer.learning_rate, values: [1e-4, 1e-3]}"
        )
    key, found = value.get("key"), []
    for number, item in enumerate(_list(value["values"], "vary.values", file)):
        where = f"vary.values.{number}"
        if isinstance(item, Mapping):
            rest = {k: v for k, v in item.items() if k != "name"}
            name = item.get("name", ", ".join(f"{k}={v}" for k, v in rest.items()))
            found.append(Variant(_text(name, f"{where}.name", file), _settings(rest, where, file)))
            continue
        if key is None:
            raise ConfigError(f"{where}: {shown(item)} in {file} is the value of no key; give vary.key")
        keys = tuple(_text(key, "vary.key", file).split("."))
        found.append(Variant(f"{keys[-1]}={_as_text(item)}", ((keys, item),)))
    if not found:
        raise ConfigError(f"vary.values in {file} is empty; give at least one value, or leave vary out")
    return tuple(found)


def _list(value: Any, where: str, file: str) -> list[Any]:
    if isinstance(value, CommandLineText):
        if value.strip().startswith("["):
            value = parse_yaml(value, yaml.SafeLoader, where)
        else:  # commas between the settings of a rule, as in opus(a=1,b=2), separate nothing
            return [CommandLineText(part.strip()) for part in re.split(r",(?![^(]*\))", value) if part.strip()]
    if value is None:
        return []
    if isinstance(value, (str, int, float)):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: {shown(value)} in {file} is not a list")
    return list(value)


def _text(value: Any, where: str, file: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {shown(value)} in {file} is not a text")
    return str(value)


def _as_text(value: Any) -> str:
    return "null" if value is None else ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _truth(value: Any, where: str, file: str) -> bool:
    known = {True: True, False: False, "true": True, "false": False}
    if isinstance(value, (bool, str)) and value in known:
        return known[value]
    raise ConfigError(f"{where}: {shown(value)} in {file} is neither true nor false")


def _unknown(key: str, file: str) -> ConfigError:
    if key in TrainConfig.__dataclass_fields__:
        return ConfigError(f"unknown key {shown(key)} in {file}; keys of the training go below set: set.{key}")
    return ConfigError(f'unknown key {shown(key)} in {file}; did you mean "{nearest(key, _KEYS)}"?')
