"""A report as lines of text, for a terminal of any width."""

import textwrap
from collections.abc import Sequence

from greats_jax.experiments.report.document import Block, Charts, Examples, Folded, Heading, Report, ShownExample, Table

_FEWEST = 40  # columns below which tables are not cut any narrower
_CELL = 12  # width that words in a cell keep at least
_EXAMPLE = 300  # characters of a part of an example
_MOST_ROWS, _POINTS = 12, 7  # a chart with more rows than the one is shown in as many as the other


def as_text(report: Report, width: int) -> str:
    """The whole report but for pictures and full configurations, in lines of at most `width` characters."""
    width = max(_FEWEST, width)
    lines = [*_wrapped(report.title, width), "=" * min(width, len(report.title)), *_wrapped(report.subtitle, width), ""]
    for paragraph in report.verdict.split("\n\n"):
        lines += [*_wrapped(paragraph, width), ""]
    for section in report.sections:
        parts = [text for block in section.blocks if (text := _block(block, width))]
        if parts:
            lines += [section.title, "-" * len(section.title), "\n\n".join(parts), ""]
    return _plain("\n".join(lines)).rstrip() + "\n"


def _block(block: Block, width: int) -> str:
    match block:
        case Table():
            return _table(block, width)
        case Charts(charts):
            titled = (("\n".join(_wrapped(chart.title, width)), _thinned(chart.table)) for chart in charts)
            return "\n\n".join(f"{title}\n{_table(table, width)}" for title, table in titled)
        case Examples(title, examples):
            return "\n".join([*_wrapped(title, width), *("\n".join(_example(one, width)) for one in examples)])
        case Heading(text):
            return "\n".join(_wrapped(text, width))
        case Folded(_, content):
            return _table(content, width) if isinstance(content, Table) else ""
        case str():
            return "\n".join(_wrapped(block.replace("`", ""), width))


def _example(one: ShownExample, width: int) -> list[str]:
    lines = [f"* {one.id} ({one.source}): {one.facts}"]
    for text, learned in one.parts:
        short = _shortened(" ".join(text.split()), _EXAMPLE)
        lines.append(f"-> {short}" if learned else short)
    first, *rest = (_wrapped(line, width - 2) for line in lines)
    return [*first, *(f"  {part}" for lines in rest for part in lines)]


def _thinned(table: Table) -> Table:
    """Of the many points of a curve a few, with the first and the last."""
    count = len(table.rows)
    if count <= _MOST_ROWS:
        return table
    kept = [round(place * (count - 1) / (_POINTS - 1)) for place in range(_POINTS)]
    return table._replace(rows=tuple(table.rows[place] for place in kept))


def _plain(text: str) -> str:
    """Without the control characters by which a text could take over the terminal; lines stay lines."""
    return "".join(x if x.isprintable() or x == "\n" else " " if x.isspace() else "?" for x in text)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _table(table: Table, width: int) -> str:
    """Aligned columns; what is too wide is continued below, with its labels again, and long words are cut."""
    head = [table.head] if any(table.head) else []
    rows = [*head, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.head))]
    words = range(min(table.left, len(widths)))
    for i in words:
        widths[i] = min(widths[i], max(_CELL, width // (2 if i == 0 else 3)))
    labels = tuple(range(_labels(table, widths, width)))
    room = width - sum(widths[i] + 2 for i in labels)
    shown = [min(column, width if i in labels else room) for i, column in enumerate(widths)]
    parts: list[list[int]] = [[]]
    for i in range(len(labels), len(widths)):
        if parts[-1] and sum(widths[j] + 2 for j in parts[-1]) + widths[i] > room:
            parts.append([])
        parts[-1].append(i)
    texts = []
    for part in parts:
        lines = []
        for row in rows:
            cells = (_cell(row[i], shown[i], i < table.left) for i in (*labels, *part))
            lines.append("  ".join(cells).rstrip())
        if head:
            lines.insert(1, "  ".join("-" * shown[i] for i in (*labels, *part)))
        texts.append("\n".join(lines))
    caption = ["\n".join(_wrapped(table.caption, width))] if table.caption else []
    return "\n".join(["\n\n".join(texts), *caption])


def _labels(table: Table, widths: Sequence[int], width: int) -> int:
    """How many columns say what a row is of: those of words, unless all are, or they leave little room for the rest."""
    if table.left < len(widths) and sum(column + 2 for column in widths[: table.left]) <= width // 2:
        return table.left
    return 1


def _cell(text: str, width: int, left: bool) -> str:
    text = _shortened(" ".join(text.split()), width)
    return text.ljust(width) if left else text.rjust(width)
