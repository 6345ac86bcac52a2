"""What a compiled program does in one run, read from its text: loops count with all their turns."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

Shapes = Mapping[str, tuple[int, ...]]
"""Of the results of a computation, by name."""

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')
_RESULT = re.compile(r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = \w+\[(?P<axes>[\d,]*)\]")
_DOT = re.compile(r" dot\([^%)]*%?(?P<left>[\w.\-]+),.*lhs_contracting_dims=\{(?P<axes>[\d,]*)\}")


class _Computation(NamedTuple):
    costs: Counter[str]
    calls: list[tuple[str, int]]
    shapes: dict[str, tuple[int, ...]]


def per_run(program: str, cost: Callable[[str, Shapes], Counter[str]]) -> Counter[str]:
    """The costs of one run of a program on one device.

    What stands in a loop counts as often as the loop is known to turn, and not at all where that is not known: the step
    has such a loop, which only turns when a gradient is not finite. Of the branches of a conditional all count.

    Args:
        program: `jitted.lower(...).compile().as_text()`.
        cost: `cost(line, shapes) -> Counter`, what a line of the program costs; the line of an operand comes before.
    """
    computations, entry = _computations(program, cost)
    totals: dict[str, Counter[str]] = {}

    def total(name: str) -> Counter[str]:
        if name not in totals:
            totals[name] = Counter(computations[name].costs)
            for called, times in computations[name].calls:
                for kind, size in total(called).items():
                    totals[name][kind] += times * size
        return totals[name]

    return total(entry)


def matmul_flops(program: str) -> int:
    """FLOPs of the matrix products of one device in one run, two per multiply-add."""

    def flops(line: str, shapes: Shapes) -> Counter[str]:
        dot, result = _DOT.search(line), _RESULT.match(line)
        if dot is None or result is None:
            return Counter()
        contracted = (shapes[dot.group("left")][axis] for axis in _axes(dot.group("axes")))
        return Counter({"dot": 2 * math.prod(_axes(result.group("axes"))) * math.prod(contracted)})

    return per_run(program, flops)["dot"]


def _computations(program: str, cost: Callable[[str, Shapes], Counter[str]]) -> tuple[dict[str, _Computation], str]:
    found: dict[str, _Computation] = {}
    current, entry = _Computation(Counter(), [], {}), ""
    for line in program.splitlines():
        if opened := _COMPUTATION.match(line):
            current = found[opened.group(1)] = _Computation(Counter(), [], {})
            entry = opened.group(1) if line.startswith("ENTRY") else entry
            continue
        if result := _RESULT.match(line):
            current.shapes[result.group("name")] = _axes(result.group("axes"))
        current.costs.update(cost(line, current.shapes))
        trips = _TRIPS.search(line)
        names = _CALLED.findall(line) + [
            name.strip().lstrip("%") for names in _BRANCHES.findall(line) for name in names.split(",")
        ]
        times = int(trips.group(1)) if trips else 0 if " while(" in line else 1
        current.calls.extend((name, times) for name in names)
    for computation in found.values():
        computation.calls[:] = [(name, times) for name, times in computation.calls if name in found]
    return found, entry


def _axes(text: str) -> tuple[int, ...]:
    return tuple(int(x) for x in text.split(",") if x)
