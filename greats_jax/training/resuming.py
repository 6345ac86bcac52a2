"""Going on with a run: whether it is the same one, and the newest of its checkpoints that is whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from greats_jax.errors import ConfigError, RunError
from greats_jax.training.checkpoints import Checkpoints
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import dotted, load_config, plain
from greats_jax.training.fingerprints import fingerprint_of_arrays, fingerprint_of_examples
from greats_jax.training.inputs import ExampleFacts
from greats_jax.training.jsonl import read_json_lines
from greats_jax.training.run_folder import CONFIG
from greats_jax.training.saving import Saved
from greats_jax.training.setup import TaskData
from greats_jax.training.state import TrainState
from greats_jax.training.surroundings import version_of

MAY_CHANGE = ("checkpoint", "compilation_cache", "distributed", "guards", "mesh", "output", "trackers", "wandb_project")
"""Keys that decide nothing of what a run computes, up to the order of sums where devices are arranged anew."""

_PACKAGES = ("flax", "greats-jax", "jax", "jaxlib", "optax")
_MUST_STAY = {
    "base": "the pretrained model is not the one that this run began with; put the old one back",
    "data": "the examples are not those that this run began with; put the old files back",
    "groups": "scoring.scope=per_device chose apart on another number of groups of devices; use as many, or that scope",
}


def check_same_run(folder: Path, config: TrainConfig) -> None:
    """Make sure that a configuration goes on with the run in a folder.

    Raises:
        ConfigError: It would compute something else; its notes are the keys that differ, one a line.
    """
    old, new = (dict(dotted(plain(one))) for one in (load_config(folder / CONFIG), config))
    keys = [key for key in {**old, **new} if key.split(".")[0] not in MAY_CHANGE]
    differing = [f"{key}: {_shown(old, key)} -> {_shown(new, key)}" for key in keys if old.get(key) != new.get(key)]
    if differing:
        error = ConfigError(
            f"{folder}: the run in this folder was begun with another configuration and cannot go on with this one; "
            "take the old values back, or choose another folder with output=..."
        )
        for line in differing:
            error.add_note(line)
        raise error


def origin_of(
    config: TrainConfig, data: TaskData, facts: ExampleFacts, params: Any, frozen: Any, groups: int = 1
) -> dict[str, Any]:
    """What a run stands on beside its configuration, as short hashes: the frozen weights are never saved themselves.

    Cost: one pass over all weights and over all examples.
    """
    examples = fingerprint_of_examples((*data.pool.examples, *data.validation, *data.test))
    return {
        "model": config.model.source,
        "initial": fingerprint_of_arrays(params),
        "base": fingerprint_of_arrays(frozen),
        "examples": examples,
        "data": examples + fingerprint_of_arrays(facts),
        "groups": groups,
        "platform": jax.default_backend(),
        "packages": {name: version_of(name) for name in _PACKAGES},
    }


def newest_whole(
    checkpoints: Checkpoints, like: TrainState, folder: Path, origin: dict[str, Any], notice: Callable[[str], None]
) -> tuple[TrainState, Saved]:
    """The state of the newest checkpoint that is whole; newer ones are removed.

    Args:
        checkpoints: Those of the run, at least one.
        like: Shapes, dtypes and shardings of the state.
        folder: The run folder, whose records must reach as far as the checkpoint says.
        origin: What the run stands on now.
        notice: Told of every checkpoint that cannot be used, and why.

    Raises:
        RunError: None is whole, or the run stands on something else than it did.
    """
    numbers, faults = checkpoints.numbers(), []
    for place, number in enumerate(numbers):
        try:
            state, record = checkpoints.restore(number, like)
            saved = Saved.of(record)
            _check_records(folder, saved.lengths)
        except RunError as error:
            faults.append(f"{error}; it is left out")
            continue
        for fault in faults:
            notice(fault)
        _check_origin(folder, saved.origin, origin, notice)
        checkpoints.discard(numbers[:place])
        return state, saved
    error = RunError(
        f"{folder}: none of the checkpoints ({', '.join(map(str, numbers))}) can be used; begin again in another "
        "folder with output=..."
    )
    for fault in faults:
        error.add_note(fault)
    raise error


def _check_records(folder: Path, lengths: dict[str, int]) -> None:
    """Make sure that what was recorded up to a checkpoint is there and can be read: at its end a run reads it again."""
    for name, length in lengths.items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else 0
        if found < length:
            raise RunError(f"{folder / name} holds {found} bytes, fewer than the {length} it had at the checkpoint")
        read_json_lines(folder / name, length)


def _check_origin(folder: Path, old: dict[str, Any], new: dict[str, Any], notice: Callable[[str], None]) -> None:
    for name, meaning in _MUST_STAY.items():
        if old[name] != new[name]:
            raise RunError(
                f"{folder}: {meaning}, or choose another folder with output=... ({name}: {old[name]} -> {new[name]})"
            )
    old, new = ({"platform": one["platform"], **one["packages"]} for one in (old, new))
    if changed := [f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]:
        notice(f"changed since the run began, so that numbers may differ in their last bits: {', '.join(changed)}")


def _shown(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    return "null" if value is None else str(value)
