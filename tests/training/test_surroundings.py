import jax
import numpy as np
import pytest
from tiny import FinishedRun

from greats_jax.selection import get
from greats_jax.training import surroundings
from greats_jax.training.surroundings import PeakMemory, versions
from greats_jax.training.trial import seconds_of_rule


def test_a_run_says_what_it_ran_on(finished_run: FinishedRun):
    summary = finished_run.result.summary
    assert summary["versions"]["jax"] == jax.__version__
    assert summary["device"] == {"kind": jax.devices()[0].device_kind, "count": len(jax.devices()), "processes": 1}
    assert set(summary["time"]) == {"data", "scoring", "selection", "update", "evaluation", "compiling"}
    assert summary["time"]["compiling"] > 0


def test_peak_memory_is_what_was_held_since():
    memory = PeakMemory()
    before = memory.read()["peak_bytes"]
    if before is None:
        pytest.skip("this system does not count the memory of a process anew")
    size = 200 * 2**20
    held = np.ones(size, np.uint8)
    assert memory.read()["peak_bytes"] >= before + 0.9 * size
    del held
    assert PeakMemory().read()["peak_bytes"] < before + 0.5 * size


def test_peak_memory_of_a_device_is_unknown_where_an_earlier_run_held_more(monkeypatch):
    peaks = iter([100, 100, 100, 150])
    monkeypatch.setattr(surroundings, "_device_peak", lambda: next(peaks))
    assert PeakMemory().read() == {"peak_bytes": None, "measured": "device"}
    assert PeakMemory().read() == {"peak_bytes": 150, "measured": "device"}


def test_a_package_that_is_not_installed_has_no_version():
    assert surroundings.version_of("no-such-package") is None
    assert (versions()["python"] or "").startswith("3.")


def test_a_rule_is_timed_alone():
    small, large = (seconds_of_rule(get("greats"), n, n // 2) for n in (16, 1024))
    assert small is not None
    assert large is not None
    assert 0 < small < large
