"""Colours (after Okabe and Ito), dashes and markers: told apart by the colour-blind, and in grey print."""

from collections.abc import Sequence
from typing import NamedTuple


class Style(NamedTuple):
    """How one method or source is drawn.

    Attributes:
        light: Colour on white.
        dark: Colour on black.
        dashes: On and off lengths in points; empty for an unbroken line.
        marker: Matplotlib's name of the marker.
        hatch: Matplotlib's name of the pattern in bars.
    """

    light: str
    dark: str
    dashes: tuple[float, ...]
    marker: str
    hatch: str


STYLES = (
    Style("#24292f", "#e6e9ee", (5, 2), "s", ""),
    Style("#0072b2", "#56a8ec", (), "o", ""),
    Style("#d98c00", "#f2b134", (6, 2, 1.2, 2), "^", "////"),
    Style("#3d9ddb", "#a9dcff", (2.5, 1.2), "D", "...."),
    Style("#d55e00", "#ff8142", (1.2, 1.2), "v", "\\\\\\\\"),
    Style("#009e73", "#2fcb9b", (8, 2), "P", "xxxx"),
    Style("#b85c92", "#eba3cd", (4, 1.2, 1.2, 1.2, 1.2, 1.2), "X", "----"),
    Style("#8a7a00", "#f0e442", (3, 3), "*", "++++"),
)
"""More than eight lines cannot be told apart in one picture anyway; the ninth looks like the first."""

INK, MUTED, GRID, PAPER = "#1f2328", "#636c76", "#e1e5ea", "#fefefe"
"""Text, less important text, lines of the grid, and background, on white."""

IN_THE_DARK = {INK: "#e6e9ee", MUTED: "#a3adb8", GRID: "#333a44", PAPER: "#14181d"}

_FIXED = {"regular": 0, "greats": 1, "random_k": 2, "greats_first_order": 3, "max_loss": 4, "target_only": 5}
"""A method looks the same in every report."""


def variables() -> dict[str, tuple[str, str, str]]:
    """Every colour of a picture, as the name of its CSS variable, its light and its dark value."""
    roles = {"ink": INK, "muted": MUTED, "grid": GRID, "paper": PAPER}
    found = {name: (light, IN_THE_DARK[light]) for name, light in roles.items()}
    found |= {f"s{number}": (style.light, style.dark) for number, style in enumerate(STYLES)}
    return {light: (name, light, dark) for name, (light, dark) in found.items()}


def style(number: int) -> Style:
    """The style of a number."""
    return STYLES[number % len(STYLES)]


def styles_of_methods(methods: Sequence[str]) -> dict[str, int]:
    """A style for each method: its own for those that every comparison has, the ones left over for others."""
    found = {method: _FIXED[method] for method in methods if method in _FIXED}
    free = [number for number in (1, 6, 7, *range(len(STYLES))) if number not in found.values()]
    others = [method for method in methods if method not in _FIXED]
    for place, method in enumerate(others):
        found[method] = free[place] if place < len(free) else place
    return {method: found[method] for method in methods}


def styles_in_order(names: Sequence[str]) -> dict[str, int]:
    """A style for each of other things, such as sources: the clearest first."""
    order = (1, 4, 5, 2, 6, 3, 0, 7)
    return {name: order[place % len(order)] for place, name in enumerate(names)}
