"""What a compiled program sends between devices, read from its text."""

from __future__ import annotations

import math
import re
from collections import Counter

from greats_jax.analysis.compiled_program import Shapes, per_run
from greats_jax.errors import ArgumentError

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}
_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (?P<shapes>\S.*?) (?P<kind>{_KINDS})(?:-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_COUNTED_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")  # between them: an order of devices


def bytes_received(program: str) -> Counter[str]:
    """Bytes that one device receives from others in a run of a compiled program, by kind of collective.

    A ring is assumed, the least that any algorithm needs: of a result of b bytes among g devices, an all-gather and an
    all-to-all bring b (g - 1) / g, an all-reduce twice that, a reduce-scatter b (g - 1). Loops count as in `per_run`.

    Args:
        program: `jitted.lower(...).compile().as_text()`, of a program split over devices.

    Raises:
        ArgumentError: a collective does not say in a known way which devices it joins.
    """

    def received(line: str, shapes: Shapes) -> Counter[str]:
        sends = _COLLECTIVE.search(line)
        if sends is None:
            return Counter()
        return Counter({sends.group("kind"): _received(sends.group("kind"), sends.group("shapes"), line)})

    return per_run(program, received)


def _received(kind: str, shapes: str, line: str) -> int:
    size = sum(
        _BYTES.get(dtype, 4) * math.prod(int(x) for x in axes.split(",") if x) for dtype, axes in _SHAPE.findall(shapes)
    )
    if kind == "collective-permute":
        return size
    group = _group_size(line)
    match kind:
        case "reduce-scatter":
            return size * (group - 1)
        case "all-reduce":
            return 2 * size * (group - 1) // group
        case _:
            return size * (group - 1) // group


def _group_size(line: str) -> int:
    """How many devices take part together, in any of the three ways of writing it."""
    if listed := _LISTED_GROUPS.search(line):
        return len(listed.group(1).split(","))
    if counted := _COUNTED_GROUPS.search(line):
        return int(counted.group(1))
    if named := _MESH_GROUPS.search(line):
        axes = dict(item.split("=") for item in named.group(1).split(","))
        # A part of an axis is written 'name':(offset)size.
        used = [item.strip().split(":(") for item in named.group(2).split(",")]
        return math.prod(int(part[1].split(")")[1]) if len(part) > 1 else int(axes[part[0]]) for part in used)
    raise ArgumentError(f"which devices take part together is written in an unknown way: {line.strip()[:300]}")
