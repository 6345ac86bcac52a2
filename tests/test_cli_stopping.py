"""Signals, sent to a small program that waits in C code as it would in a compilation."""

import signal
import subprocess
import sys
import time

import pytest

WAITING = """
import hashlib, sys
from greats_jax.cli.stopping import stop_on_signals

with stop_on_signals() as stop:
    print("ready", flush=True)
    while not stop.requested():
        hashlib.pbkdf2_hmac("sha256", b"", b"", {rounds})
    print("saved", flush=True)
"""
SECOND = 1_000_000  # rounds that take about that long
FOREVER = 1_000_000_000


def signalled(rounds: int, *numbers: signal.Signals) -> subprocess.CompletedProcess:
    """The end of the program after signals, half a second between them."""
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING.format(rounds=rounds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in numbers:
            time.sleep(0.5)
            process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_one_signal_lets_the_step_end(number):
    ended = signalled(SECOND, number)
    assert (ended.returncode, ended.stdout) == (0, "saved\n")
    assert ended.stderr.strip() == "greats: stopping after this step and saving; press Ctrl-C again to stop at once"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupt_after_that_stops_at_once_whatever_is_going_on(first):
    began = time.monotonic()
    ended = signalled(FOREVER, first, signal.SIGINT)
    assert time.monotonic() - began < 10
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr.strip().split("\n")[-1] == "greats: stopped"
    assert "Traceback" not in ended.stderr


def test_a_second_sigterm_changes_nothing():
    assert signalled(SECOND, signal.SIGTERM, signal.SIGTERM).returncode == 0


def test_afterwards_signals_mean_what_they_meant_before():
    from greats_jax.cli.stopping import stop_on_signals

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals() as stop:
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not stop.requested()
