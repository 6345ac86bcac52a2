"""Several processes in one run: how they start, agree, and which of them writes.

Everything here does nothing in a run of one process.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

from greats_jax.errors import ConfigError, RunError
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


def wait_for_all(what: str) -> None:
    """Go on when every process has come here.

    Args:
        what: Where that is, the same in all.
    """
    if not alone():
        multihost_utils.sync_global_devices(what)


def any_says(flag: bool) -> bool:
    """Whether any process says yes, the same answer in all: each asks at the same moment."""
    return flag if alone() else bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def first_says(number: int) -> int:
    """The number of the process that writes."""
    return number if alone() else int(multihost_utils.broadcast_one_to_all(np.asarray(number)))
