"""Rules written as text: `greats`, `opus(temperature=0.5)`, `0.5*normalised(greats) + 0.5*uds`."""

from __future__ import annotations

import ast
from typing import Any

from greats_jax.errors import ArgumentError
from greats_jax.selection.registry import named_rule, wrapped
from greats_jax.selection.rule import Rule

_LARGEST = 1e30  # a factor beyond would leave float32


def get(name: str, **settings: Any) -> Rule:
    """The rule of that name with these settings, or the one that an expression describes.

    An expression is made of names of rules, their settings in parentheses, numbers, `+`, `-`, `*`, and wrappers
    around a rule, as in `quota(0.7*normalised(greats) + 0.3*max_loss, share=0.5)`.

    Args:
        name: a registered name, or an expression.
        settings: of the rule, where the name is that of one rule.

    Raises:
        ArgumentError: an unknown name or setting, or text that is no such expression; nothing in it is executed.
    """
    if name.strip().isidentifier():
        return named_rule(name.strip(), settings)
    if settings:
        raise ArgumentError(f"settings of {name!r} are written inside it, as in opus(temperature=0.5)")
    try:
        if not name.strip():
            raise ValueError
        # In parentheses, as a configuration may break a long line.
        found = _read(ast.parse(f"({name})", mode="eval").body, name)
    except ArgumentError:
        raise
    except (RecursionError, MemoryError):
        raise ArgumentError(f"a selection rule of {len(name)} characters is too long: {name[:60]!r}...") from None
    except (SyntaxError, ValueError):
        raise ArgumentError(
            f"{name!r} is no selection rule: give a name such as greats, or a sum such as 0.5*greats + 0.5*max_loss"
        ) from None
    if not isinstance(found, Rule):
        raise ArgumentError(f"{name!r} is a number, not a selection rule")
    return found


def _read(node: ast.expr, text: str) -> Rule | float:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool) and number < _LARGEST:
            return float(number)
        case ast.Name(id=name):
            return named_rule(name, {})
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read(operand, text)
        case ast.BinOp(left=left, op=op, right=right):
            return _operate(_read(left, text), op, _read(right, text), node, text)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            return named_rule(name, _settings(keywords, text))
        case ast.Call(func=ast.Name(id=name), args=[inner], keywords=keywords):
            rule = _read(inner, text)
            if isinstance(rule, Rule):
                return wrapped(name, rule, _settings(keywords, text))
    raise ArgumentError(
        f"cannot read {ast.unparse(node)!r} in the selection rule {text!r}: use names of rules, settings such as "
        "opus(temperature=0.5), numbers, +, - and *"
    )


def _operate(left: Rule | float, op: ast.operator, right: Rule | float, node: ast.expr, text: str) -> Rule | float:
    numbers = [isinstance(x, float) for x in (left, right)]
    if isinstance(op, ast.Mult) and any(numbers):
        return left * right  # type: ignore[operator]
    if isinstance(op, (ast.Add, ast.Sub)) and (all(numbers) or not any(numbers)):
        return left + right if isinstance(op, ast.Add) else left - right  # type: ignore[operator]
    raise ArgumentError(
        f"{ast.unparse(node)!r} in the selection rule {text!r} has no meaning: rules are added to and subtracted from "
        "rules, and multiplied by numbers"
    )


def _settings(keywords: list[ast.keyword], text: str) -> dict[str, Any]:
    settings = {}
    for keyword in keywords:
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError):
            value = None
        if keyword.arg is None or value is None:
            raise ArgumentError(f"cannot read the setting {ast.unparse(keyword)!r} in the selection rule {text!r}")
        if keyword.arg in settings:
            raise ArgumentError(f"the setting {keyword.arg!r} is given twice in the selection rule {text!r}")
        settings[keyword.arg] = tuple(value) if isinstance(value, list) else value
    return settings
