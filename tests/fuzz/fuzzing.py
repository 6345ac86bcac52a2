"""How the readers are fuzzed: by mutated real files and by texts, with no crash, no hang and no wild allocation.

A reader may refuse what it is given, with the error of our family and one line of text, or read it. Anything else is
a finding: another exception, more time than `SECONDS`, or more memory than `BYTES` beyond what the process had.
"""

import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greats_jax.errors import GreatsError

SECONDS = 20
"""Far more than any reader needs for a file of a few kilobytes, however busy the machine."""

BYTES = 4 * 2**30
"""Address space, which libraries reserve generously; a header that lies by billions wants more."""

# Numbers that headers lie with, as eight bytes (little-endian; the first four are a number of their own).
LIES = [0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**62, 2**63 - 1, 2**63, 2**64 - 1]

examples = pytest.mark.parametrize("examples", [25, pytest.param(800, marks=pytest.mark.slow)])
"""How many inputs a test tries: few by default, many in the slow run."""


def fuzz(check: Callable[[Any], object], inputs: st.SearchStrategy, count: int) -> None:
    """Gives `count` inputs to `check`, which may refuse each in one line."""

    @settings(
        max_examples=count,
        deadline=None,  # `bounded` watches the time, and a busy machine is no finding
        database=None,
        derandomize=count < 100,  # the default run tries the same inputs everywhere; the slow one new ones each time
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(inputs)
    def property_of_every_input(value: Any) -> None:
        with bounded():
            accepted_or_refused(lambda: check(value))

    property_of_every_input()


def accepted_or_refused(check: Callable[[], object]) -> None:
    """Runs `check`; an error of our family with one line of text is as good as none."""
    try:
        check()
    except GreatsError as error:
        text = str(error)
        assert text.strip(), "an error without a word"
        assert len(text) < 100_000, f"{len(text)} characters of error"  # a few times the longest of `ODD_TEXTS`


@contextmanager
def bounded(seconds: int = SECONDS, extra: int = BYTES) -> Iterator[None]:
    """Ends what takes too long with TimeoutError and what asks for too much memory with MemoryError."""

    def late(*_: object) -> None:
        raise TimeoutError(f"still reading after {seconds} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


def _address_space() -> int:
    """Bytes of address space that this process has now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


@st.composite
def mutated(draw: st.DrawFn, valid: bytes, header: int | None = None) -> bytes:
    """A valid file after one to five accidents, most of them within its first `header` bytes."""
    raw = bytearray(valid)
    for _ in range(draw(st.integers(1, 5))):
        if not raw:
            break
        end = len(raw) if header is None or draw(st.integers(0, 4)) == 0 else min(header, len(raw))
        at = draw(st.integers(0, end - 1))
        match draw(st.sampled_from(["bit", "byte", "lie", "lie", "cut", "remove", "insert", "repeat"])):
            case "bit":
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case "byte":
                raw[at] = draw(st.integers(0, 255))
            case "lie":
                size = draw(st.sampled_from([4, 8]))
                raw[at : at + size] = draw(st.sampled_from(LIES)).to_bytes(8, "little")[:size]
            case "cut":
                del raw[at:]
            case "remove":
                del raw[at : at + draw(st.integers(1, 40))]
            case "insert":
                raw[at:at] = draw(st.binary(min_size=1, max_size=12))
            case "repeat":
                raw[at:at] = raw[at : at + draw(st.integers(1, 64))]
    return bytes(raw)


ODD_TEXTS = [
    "", " ", "\n\n", "\0", "\ud800", "a\udcff", "\ufeff", "\u202e", "\ue000", "e\u0301" * 50, "🤗" * 20, "日本語",
    "\r\n", "<|im_end|>", "<|assistant|>", "{{ 7 * 7 }}", "{% raw %}", "[INST]", "</s>", "../../x", "a/b", "%s{}",
    "x" * 20000,
]  # fmt: skip
"""Texts that something on the way is likely to stumble over."""

texts = st.one_of(st.sampled_from(ODD_TEXTS), st.text(st.characters(), max_size=20))
"""Texts, lone surrogates included, as JSON can spell them."""

numbers = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**400]),
    st.floats(),
)

values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)
"""Anything JSON or YAML can say."""
