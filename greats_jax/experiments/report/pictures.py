"""Charts as SVG that takes its colours from the page, and as PNG files; matplotlib is the extra `plots`."""

import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from textwrap import fill
from typing import Any

from greats_jax.errors import RunError
from greats_jax.experiments.report.document import Chart, Key
from greats_jax.experiments.report.styles import GRID, INK, MUTED, PAPER, style, variables
from greats_jax.training.plots import figure_class

_WIDTH = 4.3
"""Inches. On a telephone a chart is as wide as the page, 340 points of CSS or so, and its text 10 of them high."""

_MOST_COLUMNS = 3  # of a legend
_LONGEST = 40  # characters of its names and of a line of a title: what a picture is wide enough for

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be read out, searched, and set in the page's own type
    "font.size": 9,
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: a picture is the same on every machine
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in the name of a source begins no formula
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}


def svg(chart: Chart) -> str:
    """The chart as an SVG element for an HTML page, without legend and title, which the page sets.

    Raises:
        RunError: matplotlib is not installed.
    """
    text = io.StringIO()
    _draw(chart, text, {"format": "svg", "metadata": {"Date": None}}, with_legend=False)
    return _for_page(text.getvalue(), chart)


def write_pngs(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write every chart as a picture of its own, on white, with title and legend; return the files.

    Raises:
        RunError: matplotlib is not installed, or the files cannot be written.
    """
    if not charts:
        return []
    figure_class()  # says what to install
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for chart in charts:
            path = folder / f"{chart.name}.png"
            _draw(chart, path, {"format": "png", "dpi": 200, "facecolor": "white"}, with_legend=True)
            paths.append(path)
    except OSError as error:
        raise RunError(f"{folder}: the pictures cannot be written ({error.strerror or error})") from None
    return paths


def swatch(key: Key) -> str:
    """A piece of the line of a legend's entry, as an SVG element."""
    name = variables()[style(key.style).light][0]
    if key.bar:
        return (
            '<svg class="swatch" width="16" height="14" viewBox="0 0 16 14" aria-hidden="true">'
            f'<rect y="1" width="16" height="12" rx="2" style="fill:var(--{name})"/>'
            f'<g style="stroke:var(--paper);stroke-width:1.2;fill:none">{_HATCHES[style(key.style).hatch]}</g></svg>'
        )
    dashes = " ".join(f"{length * 1.2:g}" for length in style(key.style).dashes)
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    return (
        '<svg class="swatch" width="34" height="12" viewBox="0 0 34 12" aria-hidden="true">'
        f'<line x1="0" y1="6" x2="34" y2="6" style="stroke:var(--{name});stroke-width:2.4"{dash}/>'
        f'<g style="fill:var(--{name})">{_MARKS[style(key.style).marker]}</g></svg>'
    )


_MARKS = {
    "s": '<rect x="13.5" y="2.5" width="7" height="7"/>',
    "o": '<circle cx="17" cy="6" r="4"/>',
    "^": '<path d="M17 1.5 21.5 10h-9z"/>',
    "D": '<path d="M17 1l5 5-5 5-5-5z"/>',
    "v": '<path d="M17 10.5 12.5 2h9z"/>',
    "P": '<path d="M15.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z"/>',
    "X": '<path d="M13.5 1l3.5 3 3.5-3 2 2-3.5 3 3.5 3-2 2-3.5-3-3.5 3-2-2 3.5-3-3.5-3z"/>',
    "*": '<path d="M17 .5l1.5 3.8 4 .3-3.100 2.600 1 4-3.400-2.200-3.400 2.200 1-4-3.100-2.600 4-.3z"/>',
}
"""Matplotlib's markers, drawn by hand."""

_HATCHES = {
    "": "",
    "////": '<path d="M1 12 6 2M5 12l5-10M9 12l5-10"/>',
    "....": '<path d="M3 4.500h1M7.500 4.500h1M12 4.500h1M3 9.500h1M7.500 9.500h1M12 9.500h1"/>',
    "\\\\\\\\": '<path d="M6 12 1 2M10 12 5 2M14 12 9 2"/>',
    "xxxx": '<path d="M2 11l5-8M7 11 2 3M9 11l5-8M14 11 9 3"/>',
    "----": '<path d="M0 4.500h16M0 7h16M0 9.500h16"/>',
    "++++": '<path d="M0 7h16M4 1v12M8 1v12M12 1v12"/>',
}
"""Matplotlib's patterns, likewise."""


def _draw(chart: Chart, target: Any, how: dict[str, Any], with_legend: bool) -> None:
    Figure = figure_class()
    import matplotlib
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    settings: Any = {**_SETTINGS, "svg.hashsalt": chart.name}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_WIDTH, _WIDTH * chart.height), layout="constrained")
        axes = figure.subplots()
        chart.draw(axes)
        if with_legend:
            title = "\n".join(fill(line, _LONGEST) for line in (chart.title, chart.of) if line)
            axes.set_title(title, loc="left")
            handles = [
                Patch(label=_cut(key.name), **bar_style(key.style))
                if key.bar
                else Line2D([], [], label=_cut(key.name), **line_style(key.style))
                for key in chart.keys
            ]
            if handles:
                _add_legend(figure, handles)
        figure.savefig(target, **how)


def _cut(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _add_legend(figure: Any, handles: Sequence[Any]) -> None:
    """A legend below what is drawn, in as many columns as fit, and the room for it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    for columns in range(min(_MOST_COLUMNS, len(handles)), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower left", ncols=columns)
        box = legend.get_window_extent(renderer)
        if box.width <= figure.bbox.width or columns == 1:
            figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
            return
        legend.remove()


def line_style(number: int) -> dict[str, Any]:
    """Arguments of matplotlib's `plot` for a style."""
    chosen = style(number)
    return {
        "color": chosen.light,
        "linestyle": (0, chosen.dashes) if chosen.dashes else "-",
        "marker": chosen.marker,
        "markeredgecolor": PAPER,
        "markeredgewidth": 0.6,
    }


def bar_style(number: int) -> dict[str, Any]:
    """Arguments of matplotlib's `barh` for a style."""
    chosen = style(number)
    return {"facecolor": chosen.light, "edgecolor": PAPER, "hatch": chosen.hatch, "linewidth": 0.5}


def _for_page(text: str, chart: Chart) -> str:
    """What matplotlib wrote, made fit for a page with other pictures: own names, and colours that the page decides."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    # Only tags are changed: a label may hold a number, or the name of a source that looks like a colour.
    text = re.sub(r"<[^>]*>", lambda tag: _tag_for_page(tag[0], chart.name), text)
    text = re.sub(r">\s+<", "><", text)
    opening = text[: text.index(">")]
    view = re.search(r'viewBox="([^"]+)"', opening)
    title = ", ".join(filter(None, (chart.title, chart.of)))
    head = (
        f'<svg viewBox="{view[1] if view else ""}" role="img" aria-labelledby="{chart.name}-t {chart.name}-d">'
        f'<title id="{chart.name}-t">{escape(title)}</title><desc id="{chart.name}-d">{escape(chart.says)}</desc>'
    )
    return head + text[text.index(">") + 1 :].strip()


def _tag_for_page(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
    tag = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = tag.replace("xlink:href", "href")
    for light, (variable, _, _) in variables().items():
        tag = re.sub(light, f"var(--{variable})", tag, flags=re.IGNORECASE)
    # The size of the type stays, its face is that of the page.
    tag = re.sub(r"font: (?:(\w+) )?([\d.]+)px [^;\"]+", _font, tag)
    tag = re.sub(r"font-family: [^;\"]+;? ?", "", tag)
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", tag)


def _font(found: re.Match[str]) -> str:
    weight = f"font-weight: {found[1]}; " if found[1] else ""
    return f"{weight}font-size: {found[2]}px"
