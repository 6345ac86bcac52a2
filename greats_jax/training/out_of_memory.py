"""One line with advice in the place of what the runtime says when a device is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from greats_jax.errors import RunError
from greats_jax.training.config import TrainConfig
from greats_jax.training.planning import plan

_SIGN = "RESOURCE_EXHAUSTED"
"""How XLA's error begins, on every platform, when it cannot allocate: while compiling, loading or running."""


@contextmanager
def out_of_memory_explained(config: TrainConfig) -> Iterator[None]:
    """Turns a device that is full into a `RunError` with what the plan of the configuration advises.

    Raises:
        RunError: The device was full.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if _SIGN not in str(error):
            raise
        raise RunError(f"out of memory on the device: {plan(config).instead}") from error
