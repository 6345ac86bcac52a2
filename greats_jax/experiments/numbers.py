"""Numbers as a reader wants them."""

import math

MISSING = "-"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits, and no more after the point than it needs."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if abs(value) < 1e6 and float(value).is_integer():
        return f"{value:,.0f}"
    size = math.floor(math.log10(abs(value)))
    if size >= 6 or size < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - size)}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share."""
    return MISSING if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f} %"


def times(value: float | None) -> str:
    """How many times as often."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.2f} ×"


def duration(seconds: float | None) -> str:
    """A time in the unit that suits it."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds < 1:
        return f"{number(1000 * seconds, 2)} ms"
    if seconds < 100:
        return f"{number(seconds, 3)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def size(byte_count: float | None) -> str:
    """Bytes in binary units."""
    if byte_count is None or not math.isfinite(byte_count):
        return MISSING
    for unit in ("B", "KiB", "MiB"):
        if byte_count < 1024:
            return f"{number(byte_count)} {unit}"
        byte_count /= 1024
    return f"{number(byte_count)} GiB"


def listed(words: list[str]) -> str:
    """Words with commas, and an "and" before the last."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
