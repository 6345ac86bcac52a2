"""Names for selection rules, with the signals each one needs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax

from greats_jax.errors import ArgumentError
from greats_jax.selection.signals import Selection, Signals

Array = jax.Array
SelectFn = Callable[..., Selection]

_COMPUTED = frozenset(Signals._fields)


@dataclass(frozen=True)
class Rule:
    """A selection rule: a pure function and what it needs.

    Attributes:
        name: registered name.
        needs: fields of `Signals` that the step must compute. Losses alone cost a forward pass of the candidates,
            nothing at all costs nothing, the others a backward pass as well.
        select: `select(signals, k, *, learning_rate, key) -> Selection`.
        init: memory before the first step, for a rule that keeps some.
    """

    name: str
    needs: frozenset[str]
    select: SelectFn
    init: Callable[[], Any] | None = None

    def __call__(self, signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Selection:
        """Apply the rule to signals of n candidates."""
        return self.select(signals, k, learning_rate=learning_rate, key=key)


_RULES: dict[str, Rule] = {}


def register(name: str, needs: Iterable[str], init: Callable[[], Any] | None = None) -> Callable[[SelectFn], Rule]:
    """Decorator that registers a rule.

    Args:
        name: how configurations call it; a second registration of a name replaces the first.
        needs: names of `Signals` fields.
        init: builds the rule's memory before the first step.

    Raises:
        ArgumentError: `needs` names something that is not a signal.
    """
    wanted = frozenset(needs)
    if unknown := wanted - _COMPUTED:
        raise ArgumentError(
            f"rule {name!r} needs unknown signals {sorted(unknown)}; the signals are {', '.join(sorted(_COMPUTED))}"
        )

    def add(select: SelectFn) -> Rule:
        rule = Rule(name, wanted, select, init)
        _RULES[name] = rule
        return rule

    return add


def get(name: str) -> Rule:
    """The rule of that name.

    Raises:
        ArgumentError: no such rule; the message names the nearest.
    """
    found = _RULES.get(name)
    if found is None:
        close = difflib.get_close_matches(name, _RULES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ArgumentError(f"unknown selection rule {name!r}: {hint}the rules are {', '.join(names())}")
    return found


def names() -> tuple[str, ...]:
    """Names of all registered rules, in order of registration."""
    return tuple(_RULES)
