"""Several processes in one run: how they start, agree, and which of them writes.

Everything here does nothing in a run of one process.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.experimental import multihost_utils

from greats_jax.errors import ConfigError, GreatsError, RunError
from greats_jax.training.config import DistributedConfig


def join(config: DistributedConfig) -> None:
    """Join the other processes, before anything else asks JAX for its devices.

    Raises:
        ConfigError: The settings name some of what is needed, or no cluster is found.
        RunError: The others cannot be reached.
    """
    given = (config.coordinator, config.processes, config.process)
    if config.detect and any(x is not None for x in given):
        raise ConfigError("distributed: detect asks the cluster; then leave coordinator, processes and process null")
    if not config.detect and all(x is None for x in given):
        return
    if not config.detect and any(x is None for x in given):
        raise ConfigError("distributed: coordinator, processes and process are needed together")
    try:
        jax.distributed.initialize(*given)
    except ValueError as error:
        raise ConfigError(f"distributed: no cluster that JAX knows is found ({error}); name the coordinator") from None
    except RuntimeError as error:
        raise RunError(f"distributed: the processes did not come together ({error})") from None


def writes() -> bool:
    """Whether this process writes files and reports: the first of all."""
    return jax.process_index() == 0


def alone() -> bool:
    """Whether there is only one process."""
    return jax.process_count() == 1


def any_says(*flags: bool) -> tuple[bool, ...]:
    """For each question whether any process says yes, the same answers in all: each asks at the same moment."""
    if alone():
        return flags
    return tuple(bool(x) for x in multihost_utils.process_allgather(np.asarray(flags)).any(0))


@contextmanager
def together(what: str) -> Iterator[None]:
    """Leaves the block when every process has; what stops one of them stops all.

    Args:
        what: What the block does, for those that do not know why they stop.

    Raises:
        RunError: Another process could not do its part; that one says why.
    """
    failed: GreatsError | None = None
    try:
        yield
    except GreatsError as error:
        failed = error
    (others,) = any_says(failed is not None)
    if failed is not None:
        raise failed
    if others:
        raise RunError(f"another process of this run stopped while {what}; its message says why")
