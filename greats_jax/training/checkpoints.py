"""Checkpoints of a training state with Orbax: written beside the training, committed by a rename, read into any mesh.

A checkpoint is a folder named by the number of updates behind it. It holds the arrays of a `TrainState` and a record:
what the host has to know to go on, a checksum of every array, and a hash of the record itself. Orbax writes it under
another name and renames it once it is complete, so that what a killed run leaves behind is never taken for one.
"""

import contextlib
import functools
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

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
_PATIENCE = 60  # seconds


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
        _silence_what_is_dropped()

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
        self.wait()
        arrays, there = _arrays(state), self.numbers()
        for other in [other for other in self._losses if other not in there]:
            del self._losses[other]
        if loss is not None:
            self._losses[number] = loss
        body = {
            "record": record,
            "losses": {str(other): loss for other, loss in self._losses.items()},
            "arrays": _described(arrays),
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
        try:
            arrays, body = self._read(number, _arrays(like))
        except Exception as error:  # what a damaged file makes Orbax raise is anything at all
            raise RunError(f"checkpoint {number} cannot be used: {one_line(error)}") from None
        self._losses.clear()
        self._losses.update({int(other): loss for other, loss in body["losses"].items()})
        return _state(arrays, like), body["record"]

    def _read(self, number: int, wanted: dict[str, Any]) -> tuple[dict[str, Any], Record]:
        folder = self._folder / str(number)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            body = dict(reader.restore(folder, args=ocp.args.Composite(**{_RECORD: ocp.args.JsonRestore()}))[_RECORD])
            if body.pop("sha256") != _hash(body):
                raise RunError("its record is not as it was written")
            if other := _first_difference(body["arrays"], _described(wanted)):
                raise RunError(f"it has another {other} than this run")
            args = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(_stored(wanted))})
            found = reader.restore(folder, args=args)[_STATE]
        arrays = {name: found[name] if x.size else jnp.zeros(x.shape, x.dtype) for name, x in wanted.items()}
        if damaged := _first_difference(body["checksums"], checksums(arrays)):
            raise RunError(f"{damaged} is not as it was saved")
        return arrays, body

    def discard(self, numbers: Sequence[int]) -> None:
        """Remove checkpoints, and what writes that were cut short have left behind. One process does it for all."""
        if jax.process_index() != 0:
            return
        for path in (*(self._folder / str(number) for number in numbers), *self._folder.glob(_UNFINISHED)):
            shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Wait for the last write and let go of the folder; whether it succeeded is for `wait` to say."""
        with contextlib.suppress(RunError):
            self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None
            self.discard(())

    def _open(self) -> ocp.CheckpointManager:
        self.discard(())
        # Losses come from the records: the steps' own metadata need not be read, nor trusted.
        kept = _Kept(self._config, self._losses)
        options = ocp.CheckpointManagerOptions(preservation_policy=kept, lightweight_initialize=True)
        return ocp.CheckpointManager(self._folder, options=options, item_names=(_STATE, _RECORD))

    def _give_up(self, error: Exception) -> NoReturn:
        """Forget a manager that failed: the next save begins with a new one, and with the room this one took."""
        reason = one_line(error)
        manager, self._manager = self._manager, None
        if manager is not None:
            with contextlib.suppress(Exception):  # it says again what it has just said
                manager.close()
        # The writers of the other arrays have not heard of it, and go on for a moment.
        for thread in threading.enumerate():
            if type(thread).__module__.startswith("orbax."):
                threading.Thread.join(thread, _PATIENCE)
        self.discard(())
        raise RunError(reason) from None


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


def _described(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def _first_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first name whose values differ, or that only one of them has."""
    return next((name for name in sorted({*one, *other}) if one.get(name) != other.get(name)), None)


@functools.cache
def _silence_what_is_dropped() -> None:
    """Keep Python from printing what Orbax' readers and writers raise when they are dropped after another has failed.

    They are dropped whenever the collector finds them, so that this lasts as long as the process.
    """
    hook = sys.unraisablehook

    def other(unraisable: Any) -> None:
        code = getattr(unraisable.object, "cr_code", None)
        of_coroutine = code is not None and "orbax" in code.co_filename
        if not of_coroutine and str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    sys.unraisablehook = other


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _hash(body: Record) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
