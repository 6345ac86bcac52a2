"""What a report is made of, before anybody decides how it looks: the HTML file and the terminal show the same."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Table(NamedTuple):
    """Rows of texts.

    Attributes:
        head: Names of the columns.
        rows: As many cells each.
        left: Columns that are words, from the first; the others are numbers.
        caption: What the table shows, and in which unit; empty where the paragraph before it says so.
        best: Cells to point out, as (row, column).
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: int = 1
    caption: str = ""
    best: frozenset[tuple[int, int]] = frozenset()


class Key(NamedTuple):
    """One entry of a legend.

    Attributes:
        name: What is drawn in this style.
        style: Number of the style (see `styles`).
        bar: Whether it is a bar, not a line.
    """

    name: str
    style: int
    bar: bool = False


class Chart(NamedTuple):
    """A picture, and the numbers in it.

    Attributes:
        name: Of its file, without the ending; unique in a report.
        title: What it shows.
        says: The same in a sentence or two, for those who cannot see it.
        draw: Draws it on matplotlib axes.
        table: The numbers.
        keys: Its legend.
        height: Height by width.
        of: What it is about, where the page says that in a heading above it: the setting.
    """

    name: str
    title: str
    says: str
    draw: Callable[[Any], None]
    table: Table
    keys: tuple[Key, ...] = ()
    height: float = 0.68
    of: str = ""


class Charts(NamedTuple):
    """Charts side by side.

    Attributes:
        charts: The charts.
        keys: The legend that all of them share; of none, each has its own.
    """

    charts: tuple[Chart, ...]
    keys: tuple[Key, ...] = ()


class ShownExample(NamedTuple):
    """One training example.

    Attributes:
        id: Its name.
        source: Where it came from.
        facts: How often it was a candidate, how often chosen, and the like.
        parts: Its text in parts, each with whether it is learned; none where the text is not known.
    """

    id: str
    source: str
    facts: str
    parts: tuple[tuple[str, bool], ...]


class Examples(NamedTuple):
    """Examples under a heading.

    Attributes:
        title: What they have in common.
        examples: They, in order.
    """

    title: str
    examples: tuple[ShownExample, ...]


class Folded(NamedTuple):
    """A long text or table that is shown when asked for.

    Attributes:
        title: What it is.
        content: The text, in lines, or the table.
    """

    title: str
    content: str | Table


class Heading(NamedTuple):
    """What the blocks after it are about, within a section.

    Attributes:
        text: The heading.
    """

    text: str


Block = str | Heading | Table | Charts | Examples | Folded
"""A paragraph, or something to look at."""


class Section(NamedTuple):
    """A part of a report.

    Attributes:
        slug: Its address within the page.
        title: Its heading.
        blocks: What is in it, in order.
    """

    slug: str
    title: str
    blocks: tuple[Block, ...]


class Fact(NamedTuple):
    """A number to see first.

    Attributes:
        name: What it is.
        value: The number.
        note: What belongs to it, such as an interval.
    """

    name: str
    value: str
    note: str = ""


class Report(NamedTuple):
    """A whole report.

    Attributes:
        title: Its heading.
        subtitle: What was run, in a line.
        verdict: What came out, in words.
        facts: Numbers to see first.
        sections: Its parts.
    """

    title: str
    subtitle: str
    verdict: str
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]


def charts_of(report: Report) -> list[Chart]:
    """All charts, in order."""
    blocks: Sequence[Block] = [block for section in report.sections for block in section.blocks]
    return [chart for block in blocks if isinstance(block, Charts) for chart in block.charts]
