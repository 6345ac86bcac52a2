"""What a run ran on: versions, devices, and the most memory it held."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("greats-jax", "jax", "jaxlib", "flax", "optax", "numpy")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def versions() -> dict[str, str | None]:
    """Versions of Python, of the operating system and of the packages that numbers depend on."""
    packages = {name: version_of(name) for name in _PACKAGES}
    # `platform.platform` would start a program to ask for the processor.
    system = os.uname()
    place = f"{system.sysname} {system.release} {system.machine}"
    return {**packages, "python": platform.python_version(), "platform": place}


def version_of(package: str) -> str | None:
    """Version of an installed package; None for a checkout that was never installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device() -> dict[str, Any]:
    """Kind and number of devices, and the processes they belong to."""
    return {"kind": jax.devices()[0].device_kind, "count": jax.device_count(), "processes": jax.process_count()}


class PeakMemory:
    """The most memory held since it was made.

    A device counts its own; where it does not (a CPU), the memory of the process stands for it, with the interpreter
    and its libraries.
    """

    def __init__(self):
        self._device_before = _device_peak()
        try:
            _RESET.write_text("5")  # Linux then counts the process's peak anew
            self._process_before = 0
        except OSError:
            self._process_before = _process_peak() or 0

    def read(self) -> dict[str, Any]:
        """Bytes, and of what: `peak_bytes` is None where an earlier run of this process held more."""
        peak, before, measured = _device_peak(), self._device_before, "device"
        if peak is None:
            peak, before, measured = _process_peak(), self._process_before, "process"
        return {"peak_bytes": peak if peak is not None and peak > (before or 0) else None, "measured": measured}


def _device_peak() -> int | None:
    """Most bytes in use at once on the fullest device of this process; None where devices do not count."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [one["peak_bytes_in_use"] for one in stats if one and "peak_bytes_in_use" in one]
    return max(peaks, default=None)


def _process_peak() -> int | None:
    """Most bytes that this process held in memory at once; None where the system does not say."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    kilobytes = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((1024 * int(number) for number in kilobytes), None)
