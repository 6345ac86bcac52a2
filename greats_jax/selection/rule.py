"""`Rule`: a named selection objective and what it needs; rules add up and scale like the scores they give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from greats_jax.errors import ArgumentError
from greats_jax.selection.picking import greedy
from greats_jax.selection.signals import Selection, Signals, eligible

Array = jax.Array
SelectFn = Callable[..., Any]
Choose = Callable[[Signals, Sequence[Selection], int, Array | None], Selection]


@dataclass(frozen=True)
class Rule:
    """A selection rule: a pure function and what it needs.

    Rules combine: `0.5 * get("greats") + 0.5 * get("uds")` ranks by the weighted sum of the scores and takes the
    weighted sum of the overlaps, so that a greedy rule stays greedy.

    Attributes:
        name: registered name, or the expression that makes it.
        needs: fields of `Signals` that the step must compute. Losses alone cost a forward pass of the candidates,
            nothing at all costs nothing, gradients a backward pass as well.
        select: `select(signals, k, *, learning_rate, key) -> Selection`, or a pytree of selections, one per parameter.
        init: memory before the first step, for a rule that keeps some.
        remember: `remember(signals, selection) -> memory` after the final choice, for a rule whose memory depends on
            what was chosen in the end, also when it is only one part of a sum; `selection.memory` is then what `select`
            returned there. A rule may return `Selection.memory` itself instead.
        by_scores: whether the picks are the greedy ones by scores and overlap, all of one weight. False for a rule that
            draws, limits or weighs its picks: in a sum that would be lost, so only what keeps them goes around it.
    """

    name: str
    needs: frozenset[str]
    select: SelectFn
    init: Callable[[], Any] | None = None
    remember: Callable[[Signals, Selection], Any] | None = None
    by_scores: bool = True

    def __call__(self, signals: Signals, k: int, *, learning_rate: Any = None, key: Array | None = None) -> Any:
        """Apply the rule to signals of n candidates."""
        selection = self.select(signals, k, learning_rate=learning_rate, key=key)
        return selection if self.remember is None else selection._replace(memory=self.remember(signals, selection))

    def __rmul__(self, factor: float) -> Rule:
        """The rule with its scores and overlaps multiplied."""
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return composed(f"{written(factor)}*{_enclosed(self.name)}", [self], _weighted([factor]))

    __mul__ = __rmul__

    def __add__(self, other: Rule) -> Rule:
        """The rule that ranks by the sum of both scores."""
        if not isinstance(other, Rule):
            return NotImplemented
        return composed(f"{self.name} + {other.name}", [self, other], _weighted([1.0, 1.0]))

    def __sub__(self, other: Rule) -> Rule:
        """The rule that ranks by the difference of the scores."""
        if not isinstance(other, Rule):
            return NotImplemented
        return composed(f"{self.name} - {_enclosed(other.name)}", [self, other], _weighted([1.0, -1.0]))

    def __neg__(self) -> Rule:
        """The rule that ranks the other way round."""
        return composed(f"-{_enclosed(self.name)}", [self], _weighted([-1.0]))


def composed(
    name: str, parts: Sequence[Rule], choose: Choose, needs: Collection[str] = (), by_scores: bool = True
) -> Rule:
    """A rule made of others, whose picks are dropped and whose scores and overlaps are used.

    Args:
        name: of the new rule.
        parts: the rules it is made of.
        choose: `choose(signals, selections, k, key) -> Selection`, from what the parts found, which all have scores.
        needs: signals that the choice itself looks at.
        by_scores: of the new rule, see `Rule`.

    Returns:
        The rule. Its memory is a tuple of those of its parts.

    Raises:
        ArgumentError: a part draws, limits or weighs its picks (opus, quota); when called, a part that has no scores
            (random_k) or chooses layer by layer.
    """
    if part := next((part for part in parts if not part.by_scores), None):
        raise ArgumentError(
            f"{name!r} would rank by the scores of {part.name!r} and lose how it draws, limits or weighs its picks: "
            "only soft and above can go around it"
        )
    return _made_of(name, parts, choose, needs, by_scores)


def adjusted(name: str, rule: Rule, adjust: Choose) -> Rule:
    """A rule that keeps the picks of another and changes their weights, or leaves some out.

    Args:
        name: of the new rule.
        rule: any rule with scores.
        adjust: `adjust(signals, [selection], k, key) -> Selection`.

    Raises:
        ArgumentError: when called, a rule that has no scores or chooses layer by layer.
    """
    return _made_of(name, [rule], adjust, (), by_scores=False)


def _made_of(name: str, parts: Sequence[Rule], choose: Choose, needs: Collection[str], by_scores: bool) -> Rule:
    remembers = any(part.init is not None for part in parts)

    def select(signals: Signals, k: int, *, learning_rate: Any, key: Array | None) -> Selection:
        memories = signals.memory if remembers else [None] * len(parts)
        own = [signals._replace(memory=memory) for memory in memories]
        keys = [None if key is None else jax.random.fold_in(key, i) for i in range(len(parts))]
        found = [
            part.select(some, k, learning_rate=learning_rate, key=each)
            for part, some, each in zip(parts, own, keys, strict=True)
        ]
        for part, selection in zip(parts, found, strict=True):
            if not isinstance(selection, Selection) or selection.scores is None:
                raise ArgumentError(
                    f"the rule {part.name!r} gives no score per candidate, so it cannot be part of {name!r}"
                )
        chosen = choose(signals, found, k, key)
        return chosen._replace(memory=tuple(selection.memory for selection in found) if remembers else None)

    def remember(signals: Signals, selection: Selection) -> tuple[Any, ...]:
        # Called once, by the outermost rule: only that one knows the final choice.
        return tuple(
            after if part.remember is None
            else part.remember(signals._replace(memory=before), selection._replace(memory=after))
            for part, before, after in zip(parts, signals.memory, selection.memory, strict=True)
        )  # fmt: skip

    def init() -> tuple[Any, ...]:
        return tuple(None if part.init is None else part.init() for part in parts)

    union = frozenset(needs).union(*(part.needs for part in parts))
    own = (init, remember) if remembers else (None, None)
    return Rule(name, union, select, *own, by_scores=by_scores)


def _weighted(factors: Sequence[float]) -> Choose:
    def choose(signals: Signals, found: Sequence[Selection], k: int, key: Array | None) -> Selection:
        del key
        scores = _total([f * _scores(x) for f, x in zip(factors, found, strict=True)])
        overlaps = [f * x.overlap for f, x in zip(factors, found, strict=True) if x.overlap is not None]
        overlap = _total(overlaps) if overlaps else None
        return greedy(scores, overlap, k, eligible(signals, scores, overlap))

    return choose


def _total(parts: Sequence[Array]) -> Array:
    return sum(parts[1:], start=parts[0])


def _scores(selection: Selection) -> Array:
    assert selection.scores is not None  # seen to by `composed`
    return selection.scores


def written(number: float) -> str:
    """The number as in an expression: short, but never another number."""
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


def _enclosed(name: str) -> str:
    """The name, in parentheses where it is more than a name and its settings."""
    depth = 0
    for sign in name:
        depth += (sign == "(") - (sign == ")")
        if depth == 0 and sign in "+-*":
            return f"({name})"
    return name
