"""The section on the examples that were chosen most and least often."""

from collections.abc import Mapping, Sequence

from greats_jax.experiments.numbers import number, percent
from greats_jax.experiments.report.choice import Picks, choosing
from greats_jax.experiments.report.document import Block, Examples, Section, ShownExample
from greats_jax.experiments.report.examples import Standing, Texts, standings
from greats_jax.experiments.report.members import Members

_SHOWN = 6
_LONGEST = 2500  # characters of a part of an example: a page must not grow by the length of a book
_METHODS = 2


def examples_section(members: Members, picks: Picks, texts: Texts) -> Section | None:
    """The examples at both ends; None where nothing was selected."""
    found = choosing(picks)
    methods = [method for method in members.asked if method in found] or list(found)
    if not methods:
        return None
    blocks: list[Block] = [
        "Ranked by how often an example was chosen when it was a candidate, with one average candidacy added, so that "
        "what was seen once is not at the top. What is learned of an example is marked."
    ]
    if texts.missing:
        blocks.append(f"The texts are not shown, since the data cannot be read any more: {texts.missing}.")
    for method in methods[:_METHODS]:
        order = standings(found[method])
        count = min(_SHOWN, len(order) // 2)
        if count:
            blocks.append(Examples(f"Most chosen by {method}", _shown(order[:count], texts)))
            blocks.append(Examples(f"Least chosen by {method}", _shown(order[::-1][:count], texts)))
    return Section("examples", "Examples", tuple(blocks))


def _shown(order: Sequence[Standing], texts: Texts) -> tuple[ShownExample, ...]:
    return tuple(_example(one, texts.of(one.id)) for one in order)


def _example(one: Standing, parts: tuple[tuple[str, bool], ...]) -> ShownExample:
    facts = [f"chosen {one.chosen:,} of {one.considered:,} times ({percent(one.chosen / one.considered, 0)})"]
    facts += [f"mean {name} {shown}" for name, shown in _means(one).items()]
    return ShownExample(one.id, one.source, ", ".join(facts), tuple((_cut(text), learned) for text, learned in parts))


def _means(one: Standing) -> Mapping[str, str]:
    values = {"score": one.score, "loss": one.loss}
    return {name: number(value) for name, value in values.items() if value == value}


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text) - _LONGEST:,} more characters)"
