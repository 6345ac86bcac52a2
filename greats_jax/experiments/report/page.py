"""A report as one HTML file that needs nothing else: no script, no network, and nothing in it is run."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape

from greats_jax import __version__
from greats_jax.errors import RunError
from greats_jax.experiments.report.document import (
    Block,
    Chart,
    Charts,
    Examples,
    Folded,
    Heading,
    Report,
    Table,
)
from greats_jax.experiments.report.pictures import svg, swatch
from greats_jax.experiments.report.styles import variables

_TEMPLATE = "page.html.jinja"


def page(report: Report, date: str) -> str:
    """The HTML of a report. What it quotes (texts of examples, names, settings) is shown, never interpreted.

    Args:
        report: The report.
        date: When it was made, as shown at its end.
    """
    # All that is quoted may have been written to do harm: everything is escaped unless it is `Markup`.
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True)  # fmt: skip
    environment.filters |= {
        "inline": _inline,
        "kind": _kind,
        "split": _split,
        "picture": _picture,
        "swatch": lambda k: Markup(swatch(k)),
    }
    verdict = [_headline(paragraph) for paragraph in report.verdict.split("\n\n")]
    return environment.get_template(_TEMPLATE).render(
        report=report, verdict=verdict, colours=variables().values(), date=date, version=__version__
    )


def _headline(paragraph: str) -> tuple[str, str]:
    """The first sentence of a verdict, and the rest; "Of a and b, a did best." is not yet a verdict."""
    found = re.match(r"(?:(?:With [^:]*: )?Of [^.]*\. )?.*?[.](?= [A-Z0-9`]|$)", paragraph, re.DOTALL)
    end = found.end() if found else len(paragraph)
    return paragraph[:end], paragraph[end:].strip()


def _inline(text: str) -> Markup:
    """Escaped text in which what stands between backticks is set as code, and no % leaves its number."""
    return Markup(
        re.sub(r"(\d) %", "\\1\N{NO-BREAK SPACE}%", re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
    )


def _split(cell: str) -> tuple[str, str]:
    """A number, and what is said of it: its interval, how it was tested, its share."""
    number, space, more = cell.partition(" [") if " [" in cell else cell.partition(" (")
    return (number, f"{space.strip()}{more}") if number and number[-1] in "%0123456789snB" else (cell, "")


def _kind(block: Block) -> str:
    names = {Table: "table", Charts: "charts", Examples: "examples", Folded: "folded", Heading: "heading"}
    return names.get(type(block), "text")


def _picture(chart: Chart) -> Markup:
    """The picture, or nothing where matplotlib is missing: its numbers are there in any case."""
    try:
        return Markup(svg(chart))
    except RunError:
        return Markup("")
