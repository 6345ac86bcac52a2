"""Checkpoints of a training state with Orbax: written beside the training, committed by a rename, read into any mesh.

A checkpoint is a folder named by the number of updates behind it. It holds the arrays of a `TrainState` and a record:
what the host has to know to go on, a checksum of every array, and a hash of the record itself. Orbax writes it under
another name and renames it once it is complete, so that what a killed run leaves behind is never taken for one.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from greats_jax.errors import RunError
from greats_jax.models.sources import one_line
from greats_jax.training.config import CheckpointConfig
from greats_jax.training.fingerprints import checksums
from greats_jax.training.state import TrainState

Record = dict[str, Any]

_STATE, _RECORD = "state", "record"
_UNFINISHED = "*.orbax-checkpoint-tmp*"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they are; created with the first.
        config: How many to keep.
    """

    def __init__(self, folder: Path, config: CheckpointConfig):
        self._folder = folder.absolute()
        self._config = config
        self._losses: dict[int, float] = {}
        self._manager: ocp.CheckpointManager | None = None

    def numbers(self) -> list[int]:
        """Updates behind each complete checkpoint, newest first."""
        found = self._folder.iterdir() if self._folder.is_dir() else ()
        return sorted((int(path.name) for path in found if path.name.isdigit()), reverse=True)

    def save(self, number: int, state: TrainState, record: Record, loss: float | None) -> None:
        """Copy a state to the host and have it written while training goes on.

        Args:
            number: Updates behind the state.
            state: May be donated as soon as this returns.
            record: Plain JSON values that `restore` returns again.
            loss: What the best checkpoints are told by, lowest first; None for one that is not among them.

        Raises:
            RunError: This one or the one before, which was still being written, could not be.
        """
        arrays = _arrays(state)
        there = self.numbers()
        for other in [other for other in self._losses if other not in there]:
            del self._losses[other]
        if loss is not None:
            self._losses[number] = loss
        body = {
            "record": record,
            "losses": {str(other): loss for other, loss in self._losses.items()},
            "checksums": checksums(arrays),
        }
        try:
            if self._manager is None:
                self._manager = self._open()
            self._manager.save(
                number,
                args=ocp.args.Composite(
                    **{
                        _STATE: ocp.args.StandardSave(_stored(arrays)),
                        _RECORD: ocp.args.JsonSave({**body, "sha256": _hash(body)}),
                    }
                ),
            )
        except Exception as error:  # the disk, through any of Orbax's layers
            self._give_up(error)

    def wait(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
            RunError: It could not be written.
        """
        try:
            if self._manager is not None:
                self._manager.wait_until_finished()
        except Exception as error:
            self._give_up(error)

    def restore(self, number: int, like: TrainState) -> tuple[TrainState, Record]:
        """Read a checkpoint and make sure that every bit is as it was saved.

        Args:
            number: One of `numbers()`.
            like: Shapes, dtypes and shardings to restore into, as arrays or as `jax.ShapeDtypeStruct`; the devices need
                not be those it was saved from.

        Returns:
            The state, and the record it was saved with.

        Raises:
            RunError: It is damaged, or belongs to another kind of state.
        """
        wanted = _arrays(like)
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                found = reader.restore(
                    self._folder / str(number),
                    args=ocp.args.Composite(
                        **{_STATE: ocp.args.StandardRestore(_stored(wanted)), _RECORD: ocp.args.JsonRestore()}
                    ),
                )
            body, arrays = dict(found[_RECORD]), found[_STATE]
            if body.pop("sha256") != _hash(body):
                raise RunError("its record is not as it was written")
            arrays = {name: arrays[name] if x.size else jnp.zeros(x.shape, x.dtype) for name, x in wanted.items()}
            differing = sorted(set(checksums(arrays).items()) ^ set(body["checksums"].items()))
            if differing:
                raise RunError(f"{differing[0][0]} is not as it was saved")
            losses = {int(other): float(loss) for other, loss in body["losses"].items()}
        except Exception as error:  # what a damaged file makes Orbax raise is anything at all
            raise RunError(f"checkpoint {number} cannot be used: {one_line(error)}") from error
        self._losses.clear()
        self._losses.update(losses)
        return _state(arrays, like), body["record"]

    def discard(self, numbers: Sequence[int]) -> None:
        """Remove checkpoints, and what writes that were cut short have left behind."""
        for path in (*(self._folder / str(number) for number in numbers), *self._folder.glob(_UNFINISHED)):
            shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Wait for the last write and let go of the folder; whether it succeeded is for `wait` to say."""
        with contextlib.suppress(RunError):
            self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _open(self) -> ocp.CheckpointManager:
        # Losses come from the records: the steps' own metadata need not be read, nor trusted.
        kept = _Kept(self._config, self._losses)
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, lightweight_initialize=True)
        return ocp.CheckpointManager(self._folder, options=options, item_names=(_STATE, _RECORD))

    def _give_up(self, error: Exception) -> None:
        """Forget a manager that failed: the next save begins with a new one, and with the room this one took."""
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(Exception):  # it says again what it has just said
                manager.close()
        self.discard(())
        raise RunError(one_line(error)) from error


class _Kept:
    """Orbax's question which checkpoints stay, answered: the last ones, and those of lowest loss."""

    def __init__(self, config: CheckpointConfig, losses: Mapping[int, float]):
        self._config, self._losses = config, losses

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each checkpoint, oldest first, whether it stays."""
        numbers = [checkpoint.step for checkpoint in checkpoints]
        by_loss = sorted((n for n in numbers if n in self._losses), key=lambda n: self._losses[n])
        stay = {*numbers[-self._config.keep_last :], *by_loss[: self._config.keep_best]}
        return [number in stay for number in numbers]


def _arrays(state: TrainState) -> dict[str, Any]:
    """The leaves of a state by path, keys of random numbers as the words they consist of."""
    leaves = jax.tree.leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): _plain(leaf) for path, leaf in leaves}


def _state(arrays: Mapping[str, Any], like: TrainState) -> TrainState:
    """The inverse of `_arrays`, with the structure of `like`."""
    pairs = zip(arrays.values(), jax.tree.leaves(like), strict=True)
    leaves = [jax.random.wrap_key_data(value) if _is_key(leaf) else value for value, leaf in pairs]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _plain(x: Any) -> Any:
    if not _is_key(x):
        return x
    if isinstance(x, jax.Array):
        return jax.random.key_data(x)
    words = jax.eval_shape(jax.random.key_data, x)
    return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=x.sharding)


def _stored(arrays: dict[str, Any]) -> dict[str, Any]:
    """Those with elements: Orbax refuses the others, which hold nothing to store."""
    return {name: x for name, x in arrays.items() if x.size}


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _hash(body: Record) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
