"""The text of `greats train --help`: every configuration key, what it takes, its default and what it does.

It is made from the dataclasses themselves (annotations, defaults and the `Attributes:` of their docstrings), in the
notation a user types: `lora.rank=16`.
"""

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from greats_jax.selection import names as method_names
from greats_jax.selection import wrapper_names
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_values import field_types, list_item, section

_WIDTH = 100


def describe_config() -> str:
    """Every key of the configuration, one entry each."""
    lines = ["configuration keys, in CONFIG or as KEY=VALUE (paths start at the current directory):"]
    for key, kind, default, text in config_entries(TrainConfig):
        end = "" if default is None else f" (default: {default})"
        lines.append(f"  {key}={kind}" if kind else f"  {key}:")
        lines += textwrap.wrap(text + end, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"


def config_entries(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str | None, str]]:
    """Key, value notation ("" for a section), default (None for required keys) and description of every field."""
    documentation = attribute_docs(cls)
    for field in dataclasses.fields(cls):
        kind = field_types(cls)[field.name]
        key, text = prefix + field.name, documentation.get(field.name, "")
        item = list_item(kind)
        if (below := section(kind)) is not None:
            yield key, "", None, text
            yield from config_entries(below, f"{key}.")
        elif item is not None and (below := section(item)) is not None:
            yield key, "", None, text + " A list; its items have the keys:"
            yield from config_entries(below, f"{key}.0.")
        else:
            if key == "method":
                text += f" Rules: {', '.join(method_names())}. Around a rule: {', '.join(wrapper_names())}."
            yield key, _notation(kind), _default(field), text


def attribute_docs(cls: type) -> dict[str, str]:
    """Descriptions in the `Attributes:` section of a class's Google docstring, by attribute."""
    lines = inspect.cleandoc(cls.__doc__ or "").split("\n")
    if "Attributes:" not in lines:
        return {}
    body = lines[lines.index("Attributes:") + 1 :]
    indent = len(body[0]) - len(body[0].lstrip()) if body else 0
    docs: dict[str, str] = {}
    name = None
    for line in body:
        depth = len(line) - len(line.lstrip())
        if not line.strip() or depth < indent:
            break
        if depth == indent:
            name, _, text = line.strip().partition(":")
            docs[name] = text.strip()
        elif name is not None:
            docs[name] += " " + line.strip()
    return docs


def _notation(kind: Any) -> str:
    """How a value of this type is written."""
    parts = [part for part in (get_args(kind) if _is_union(kind) else (kind,)) if part is not type(None)]
    words = []
    for part in parts:
        if get_origin(part) is Literal:
            words.append("|".join(str(choice) for choice in get_args(part)))
        elif get_origin(part) is tuple:
            words.append(f"{_notation(get_args(part)[0])},...")
        else:
            words.append({int: "INTEGER", float: "NUMBER", bool: "true|false"}.get(part, "TEXT"))
    return "|".join([*words, "null"] if len(parts) < len(get_args(kind) or (kind,)) and _is_union(kind) else words)


def _is_union(kind: Any) -> bool:
    return type(None) in get_args(kind) or get_origin(kind) not in (None, Literal, tuple)


def _default(field: dataclasses.Field) -> str | None:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return None
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
