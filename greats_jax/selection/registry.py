"""Names for selection rules and for what can be put around them."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax

from greats_jax.errors import ArgumentError
from greats_jax.selection.rule import Rule, SelectFn
from greats_jax.selection.signals import Signals

Array = jax.Array

_COMPUTED = frozenset(Signals._fields)
_GIVEN = ("learning_rate", "key")


@dataclass(frozen=True)
class _Entry:
    """A rule as it was registered; settings are the keyword arguments of `select` beyond those every rule gets."""

    name: str
    needs: frozenset[str]
    select: SelectFn
    init: Callable[..., Any] | None
    remember: Callable[..., Any] | None
    by_scores: bool

    def rule(self, settings: dict[str, Any]) -> Rule:
        _check_settings(self.name, _settings_of(self.select, _GIVEN), settings)
        name = f"{self.name}({', '.join(f'{k}={v!r}' for k, v in settings.items())})" if settings else self.name
        init, remember = (None if f is None else _bind(f, settings) for f in (self.init, self.remember))
        rule = Rule(name, self.needs, _bind(self.select, settings), init, remember, self.by_scores)
        # For help() and the reference: a rule is an instance, but is written as a function.
        object.__setattr__(rule, "__doc__", self.select.__doc__)
        return rule


_RULES: dict[str, _Entry] = {}
_WRAPPERS: dict[str, Callable[..., Rule]] = {}


def register(
    name: str,
    needs: Iterable[str],
    init: Callable[..., Any] | None = None,
    remember: Callable[..., Any] | None = None,
    by_scores: bool = True,
) -> Callable[[SelectFn], Rule]:
    """Decorator that registers a rule `select(signals, k, *, learning_rate, key)`.

    Further keyword arguments with defaults are the rule's settings: `get(name, temperature=0.5)`. `init` and
    `remember` get those of them that they name.

    Args:
        name: how configurations call it; a second registration of a name replaces the first.
        needs: names of `Signals` fields.
        init: builds the rule's memory before the first step.
        remember: see `Rule`.
        by_scores: False for a rule that draws, limits or weighs its picks, see `Rule`.

    Raises:
        ArgumentError: `needs` names something that is not a signal, or the name is no identifier.
    """
    wanted = frozenset(needs)
    if unknown := wanted - _COMPUTED:
        raise ArgumentError(
            f"rule {name!r} needs unknown signals {sorted(unknown)}; the signals are {', '.join(sorted(_COMPUTED))}"
        )
    if not name.isidentifier():
        raise ArgumentError(f"a rule cannot be called {name!r}: use letters, digits and underscores, as in my_rule")

    def add(select: SelectFn) -> Rule:
        _RULES[name] = _Entry(name, wanted, select, init, remember, by_scores)
        return _RULES[name].rule({})

    return add


def wrapper(make: Callable[..., Rule]) -> Callable[..., Rule]:
    """Decorator that lets expressions use `make(rule, *, ...) -> Rule` by its name."""
    _WRAPPERS[make.__name__] = make
    return make


def named_rule(name: str, settings: dict[str, Any]) -> Rule:
    """The registered rule of that name.

    Raises:
        ArgumentError: no such rule or setting; the message names the nearest.
    """
    found = _RULES.get(name)
    if found is None and name in _WRAPPERS:
        raise ArgumentError(f"{name} goes around a rule, as in {name}(greats)")
    if found is None:
        raise ArgumentError(f"unknown selection rule {name!r}: {_nearest(name, names())}the rules are {_list(names())}")
    return found.rule(settings)


def wrapped(name: str, rule: Rule, settings: dict[str, Any]) -> Rule:
    """A rule with the wrapper of that name around it.

    Raises:
        ArgumentError: no such wrapper or setting; the message names the nearest.
    """
    make = _WRAPPERS.get(name)
    if make is None:
        raise ArgumentError(
            f"nothing called {name!r} can be put around a rule: {_nearest(name, _WRAPPERS)}there are {_list(_WRAPPERS)}"
        )
    _check_settings(name, _settings_of(make, ()), settings)
    return make(rule, **settings)


def names() -> tuple[str, ...]:
    """Names of all registered rules, in order of registration."""
    return tuple(_RULES)


def wrapper_names() -> tuple[str, ...]:
    """Names of what can be put around a rule in an expression."""
    return tuple(_WRAPPERS)


def _settings_of(function: Callable[..., Any], given: Iterable[str]) -> dict[str, Any]:
    """Defaults of the settings."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in given}


def _bind(function: Callable[..., Any], settings: dict[str, Any]) -> Callable[..., Any]:
    """The function with those settings that it takes."""
    taken = {name: value for name, value in settings.items() if name in inspect.signature(function).parameters}
    return functools.partial(function, **taken) if taken else function


def _check_settings(name: str, known: dict[str, Any], settings: dict[str, Any]) -> None:
    for setting, value in settings.items():
        if setting not in known:
            raise ArgumentError(
                f"{name} has no setting {setting!r}: {_nearest(setting, known)}"
                f"it has {_list(known) if known else 'none'}"
            )
        default = known[setting]
        if not isinstance(default, (int, float)) or isinstance(default, bool):
            continue
        whole = isinstance(default, int)
        # What has no plain number (an array, perhaps traced) is left to the rule.
        if isinstance(value, (bool, str, bytes, complex, tuple, list, dict, set, type(None))) or (
            whole and isinstance(value, float) and not value.is_integer()
        ):
            raise ArgumentError(f"{name}({setting}={value!r}): it must be a {'whole ' if whole else ''}number")


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}? " if close else ""


def _list(known: Iterable[str]) -> str:
    return ", ".join(known)
