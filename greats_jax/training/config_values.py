"""Typed values from untyped ones: what a dataclass annotation accepts, and one clear line when it does not."""

import dataclasses
import math
import reprlib
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from greats_jax.data.files import is_unicode
from greats_jax.errors import ConfigError, GreatsError
from greats_jax.training.spelling import nearest

Keys = tuple[str, ...]

EMPTY = ("null", "none", "~")
"""How the command line writes that an optional key has no value."""

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


class CommandLineText(str):
    """A value from the command line: still text, read once the type it belongs to is known."""


class Origin(NamedTuple):
    """Where values came from, for messages."""

    file: str
    overridden: tuple[Keys, ...]
    root: type

    def of(self, keys: Keys) -> str:
        """Words that say where the value at `keys` was given."""
        on_command_line = any(keys[: len(given)] == given for given in self.overridden)
        return "on the command line" if on_command_line or not self.file else f"in {self.file}"


def convert(kind: Any, value: Any, keys: Keys, origin: Origin) -> Any:
    """`value` as an instance of the annotation `kind`.

    Args:
        kind: A dataclass, `X | None`, `tuple[X, ...]`, `Literal[...]`, or one of str, int, float and bool.
        value: What YAML or the command line gave.
        keys: Dotted key of the value, for messages.
        origin: Where it was given, for messages.

    Raises:
        ConfigError: The value does not fit, or a key below it is unknown.
    """
    if _is_union(kind):
        return _convert_optional(kind, value, keys, origin)
    if (cls := section(kind)) is not None:
        return _convert_section(cls, value, keys, origin)
    if (item := list_item(kind)) is not None:
        return tuple(
            convert(item, element, (*keys, str(i)), origin) for i, element in enumerate(_elements(value, keys))
        )
    if get_origin(kind) is Literal:
        return _convert_choice(get_args(kind), value, keys, origin)
    return _convert_scalar(kind, value, keys, origin)


def section(kind: Any) -> type | None:
    """The dataclass that an annotation holds (directly or as `X | None`), or None."""
    for part in get_args(kind) if _is_union(kind) else (kind,):
        if dataclasses.is_dataclass(part) and isinstance(part, type):
            return part
    return None


def list_item(kind: Any) -> Any | None:
    """The element type of `tuple[X, ...]` (directly or as an alternative of a union), or None."""
    for part in get_args(kind) if _is_union(kind) else (kind,):
        if get_origin(part) is tuple:
            return get_args(part)[0]
    return None


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Annotation of every field of a dataclass, in order, with names resolved."""
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def all_keys(cls: type, prefix: str = "") -> list[str]:
    """Every dotted key below a dataclass; items of a list have the number 0."""
    keys = []
    for name, kind in field_types(cls).items():
        keys.append(prefix + name)
        item = list_item(kind)
        if (below := section(kind)) is not None:
            keys += all_keys(below, f"{prefix}{name}.")
        elif item is not None and (below := section(item)) is not None:
            keys += all_keys(below, f"{prefix}{name}.0.")
    return keys


def unknown_key(keys: Keys, cls: type, origin: Origin) -> ConfigError:
    """The error for a key that `cls` does not have, naming the nearest one that exists."""
    above = ".".join(keys[:-1])
    siblings = [f"{above}.{name}" if above else name for name in field_types(cls)]
    # The right name in the wrong section (learning_rate for optimizer.learning_rate) beats a likely misspelling.
    moved = [key for key in all_keys(origin.root) if key.split(".")[-1] == keys[-1]]
    dotted = shown(".".join(keys))
    suggestion = nearest(dotted, moved or siblings)
    return ConfigError(f'unknown key {dotted} {origin.of(keys)}; did you mean "{suggestion}"?')


def shown(value: Any) -> str:
    """A value as messages show it: briefly, since a few lines of YAML can stand for a thousand million values."""
    if value is None:
        return "null"
    return '"' + _SHORT.repr(str(value))[1:-1] + '"' if isinstance(value, str) else _SHORT.repr(value)


def parse_yaml(text: str, loader: type[yaml.SafeLoader], where: str) -> Any:
    """What a YAML text says.

    Args:
        text: The text.
        loader: The class that reads it.
        where: File or key that it stands in, for messages.

    Raises:
        ConfigError: It is not YAML, or says what Python has no value for.
    """
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or "it cannot be parsed").split())
        raise ConfigError(f"{where}{line}: not valid YAML: {reason}") from None
    except Exception as error:  # a month 13, !!int x, an endless number, endless nesting: whatever Python makes of it
        reason = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise ConfigError(f"{where}: not valid YAML: {reason or type(error).__name__}") from None


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _convert_optional(kind: Any, value: Any, keys: Keys, origin: Origin) -> Any:
    parts = [part for part in get_args(kind) if part is not type(None)]
    empty = value is None or (isinstance(value, CommandLineText) and value.lower() in (*EMPTY, ""))
    if empty and len(parts) < len(get_args(kind)):
        return None
    if len(parts) == 1:
        return convert(parts[0], value, keys, origin)
    for part in parts[:-1]:
        try:
            return convert(part, value, keys, origin)
        except ConfigError:
            continue
    return convert(parts[-1], value, keys, origin)


def _convert_section(cls: type, value: Any, keys: Keys, origin: Origin) -> Any:
    kinds = field_types(cls)
    if value is None:
        value = {}
    if isinstance(value, CommandLineText) and value.strip().startswith("{"):
        value = _parse(value, keys)
    if not isinstance(value, Mapping):
        first, first_kind = next(iter(kinds.items()))
        if not isinstance(value, str) or not (first_kind is str or get_origin(first_kind) is Literal):
            raise _misfit(keys, value, f"a section with the keys {', '.join(kinds)}", origin)
        value = {first: value}
    given = {}
    for name, item in value.items():
        if name not in kinds:
            raise unknown_key((*keys, str(name)), cls, origin)
        given[name] = convert(kinds[name], item, (*keys, name), origin)
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in given:
            where = f" in {origin.file}" if origin.file else ""
            raise ConfigError(f"{'.'.join((*keys, field.name))} is not given{where}, and has no default")
    try:
        return cls(**given)
    except ConfigError:
        raise
    except GreatsError as error:
        raise ConfigError(str(error)) from None  # a section checks itself in its own words, which name the key


def _elements(value: Any, keys: Keys) -> list[Any]:
    if isinstance(value, CommandLineText):
        if value.strip().startswith("["):
            return list(_parse(value, keys))
        return [CommandLineText(part.strip()) for part in value.split(",")] if value.strip() else []
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _convert_choice(choices: tuple[Any, ...], value: Any, keys: Keys, origin: Origin) -> Any:
    for choice in choices:
        if value == choice or (isinstance(value, str) and value == str(choice)):
            return choice
    names = [str(choice) for choice in choices]
    raise ConfigError(
        f"{'.'.join(keys)}: {shown(value)} {origin.of(keys)} is not one of {', '.join(names)}; "
        f'did you mean "{nearest(shown(value), names)}"?'
    )


def _convert_scalar(kind: Any, value: Any, keys: Keys, origin: Origin) -> Any:
    if kind is str:
        if isinstance(value, str):
            if not is_unicode(value):
                raise _misfit(keys, value, "text that UTF-8 can write", origin)
            return str(value)
        raise _misfit(keys, value, "text (put it in quotes)", origin)
    given = value
    if isinstance(value, CommandLineText):
        value = _parse(value, keys)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value  # not by way of float, which has only 53 bits
    if kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        number = _number(value)
        if number is not None and (kind is float or number.is_integer()):
            return kind(number)
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}
    if kind not in wanted:
        raise TypeError(f"{'.'.join(keys)}: a configuration field cannot have the type {kind}")
    raise _misfit(keys, given, wanted[kind], origin)


def _number(value: int | float | str) -> float | None:
    """A finite number, also from texts such as 2e-5, which YAML 1.1 leaves as text."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _parse(text: str, keys: Keys) -> Any:
    try:
        return parse_yaml(text, yaml.SafeLoader, "")
    except ConfigError:
        raise ConfigError(f"{'.'.join(keys)}: {shown(text)} on the command line cannot be read as a value") from None


def _misfit(keys: Keys, value: Any, wanted: str, origin: Origin) -> ConfigError:
    return ConfigError(f"{'.'.join(keys)}: {shown(value)} {origin.of(keys)} is not {wanted}")
