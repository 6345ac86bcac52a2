"""What a run will need of each device's memory, estimated before anything is loaded or compiled.

What a step keeps between calls (weights, optimizer state) is known exactly from shapes and the rules of the mesh. What
it allocates on the way is the peak of the program of one device (`liveness`): its share of the rows, and a model whose
heads, feed-forward width and vocabulary are divided as the mesh divides them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from greats_jax.errors import ConfigError
from greats_jax.ghost import value_and_per_example_grads
from greats_jax.models import DecoderConfig, read_shape
from greats_jax.models.sharding import DATA, FSDP, TENSOR
from greats_jax.training.abstract_run import AbstractRun, abstract_model, abstract_run, validation_rows
from greats_jax.training.config import TrainConfig
from greats_jax.training.liveness import bytes_of, peak_memory
from greats_jax.training.mesh import decoder_shardings, mesh_shape, place_decoder
from greats_jax.training.resolving import kept, needed, resolve
from greats_jax.training.scoring import GRADIENTS
from greats_jax.training.split_loss import SplitLoss
from greats_jax.training.state import floating
from greats_jax.training.step import TARGET_ONLY

PyTree = Any

GIB = 2**30
HEADROOM = 0.85
"""Part of the memory that a plan fills: estimates are a little low, and allocators lose some (docs/scaling.md)."""


class Mode(NamedTuple):
    """What can be traded for memory without changing which gradients are taken."""

    passes: str
    micro_batches: int
    remat: str

    @property
    def settings(self) -> str:
        """As on the command line."""
        parts = [f"scoring.passes={self.passes}", f"model.remat={self.remat}"]
        if self.micro_batches > 1:
            parts.insert(1, f"scoring.micro_batches={self.micro_batches}")
        return " ".join(parts)


class Estimate(NamedTuple):
    """Bytes on each device in one mode.

    Attributes:
        mode: The mode.
        weights: Frozen parameters.
        trained: Trained parameters.
        optimizer: Optimizer state.
        direction: The validation gradient that is kept between steps.
        gradients: Gradients of the parameters.
        logits: Arrays over the vocabulary.
        factors: Factors of the gradients of all layers, kept until the choice is made.
        activations: Everything else that is live at the peak.
    """

    mode: Mode
    weights: int
    trained: int
    optimizer: int
    direction: int
    gradients: int
    logits: int
    factors: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self[1:])


class Plan(NamedTuple):
    """The modes of a configuration, that of the configuration first, and the memory of a device if it is known."""

    estimates: tuple[Estimate, ...]
    mesh: dict[str, int]
    memory: int | None

    def fits(self, estimate: Estimate) -> bool:
        """Whether a mode leaves some of the memory free; without a known memory every one does."""
        return self.memory is None or estimate.total <= HEADROOM * self.memory

    @property
    def advice(self) -> str:
        """One sentence: what is needed, and what to set if it is too much."""
        now = self.estimates[0]
        if self.memory is None:
            return f"{_needs(now)}; {self._smallest}"
        if self.fits(now):
            return f"{_needs(now)}, which fits in {gib(self.memory)}"
        first = next((other for other in self.estimates if self.fits(other)), None)
        better = f"{first.mode.settings} needs {gib(first.total)}" if first else self._smallest
        return f"{_needs(now)}, too much for {gib(self.memory)}; {better}"

    @property
    def instead(self) -> str:
        """One sentence for when a device turned out to be full, whatever the estimate."""
        return f"by estimate {_needs(self.estimates[0])}; {self._smallest}"

    @property
    def _smallest(self) -> str:
        least = min(self.estimates, key=lambda estimate: estimate.total)
        further = (
            "lower batch (evaluate_batch for an evaluation) or data.max_length, or divide the model over more devices "
            "(mesh.fsdp, mesh.tensor)"
        )
        if least is self.estimates[0]:
            return f"no other mode needs less: {further}"
        return f"{least.mode.settings} needs {gib(least.total)}; for less still {further}"


def _needs(estimate: Estimate) -> str:
    return f"a step needs {gib(estimate.total)} per device with {estimate.mode.settings}"


def plan(config: TrainConfig, devices: int | None = None, memory: float | None = None) -> Plan:
    """Estimate what each mode of a configuration needs.

    Args:
        config: The run. Of its model only the shape is read; its data are not.
        devices: How many there will be; None for as many as there are.
        memory: GiB of each; None for what the devices report, if they do.

    Raises:
        ConfigError: The configuration contradicts itself or the number of devices.
        ModelError: The model's shape cannot be read.
    """
    config = resolve(config)
    settings = config.model
    shape = read_shape(settings.source, settings.dtype, settings.compute_dtype, settings.remat)
    mesh = mesh_shape(config.mesh, devices or jax.device_count())
    estimates = tuple(estimate(changed, shape, mesh) for changed in _modes(config, mesh[DATA] * mesh[FSDP]))
    return Plan(estimates, mesh, device_memory() if memory is None else round(memory * GIB))


def estimate(config: TrainConfig, shape: DecoderConfig, mesh: dict[str, int]) -> Estimate:
    """What one mode needs.

    Args:
        config: A resolved configuration.
        shape: Of its model; remat is that of the configuration.
        mesh: Sizes of the mesh axes.
    """
    scoring, remat = config.scoring, config.model.remat
    shape = dataclasses.replace(shape, remat=remat)
    whole = abstract_run(config, abstract_model(config, shape))
    # Placing needs the names and sizes of a mesh only, which is all an abstract one has.
    devices: Any = AbstractMesh(tuple(mesh.values()), tuple(mesh), axis_types=(AxisType.Auto,) * len(mesh))
    placement = place_decoder(devices, shape, whole.state, whole.frozen)
    state, places = whole.state, placement.state
    parts = _parts(config, _share(config, shape, mesh), mesh)
    return Estimate(
        Mode(scoring.passes, scoring.micro_batches, remat),
        _bytes(whole.frozen, decoder_shardings(devices, shape, whole.frozen)),
        _bytes(state.params, places.params),
        _bytes(state.opt_state, places.opt_state),
        _bytes(state.direction, places.direction),
        *parts,
    )


def device_memory() -> int | None:
    """Bytes that JAX may use of a device; None where the platform does not say (a CPU)."""
    statistics = jax.local_devices()[0].memory_stats()
    return (statistics or {}).get("bytes_limit")


def gib(size: float) -> str:
    """Bytes as text."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


def _modes(config: TrainConfig, row_parts: int) -> Iterator[TrainConfig]:
    """The configuration, and what else is possible with its rule, from the fastest to the smallest."""
    yield config
    given = Mode(config.scoring.passes, config.scoring.micro_batches, config.model.remat)
    # A micro-batch should leave no device without a row.
    counts = [count for count in range(2, config.batch // row_parts + 1) if config.batch % count == 0]
    ways = [("one", 1), ("two", 1), *(("two", count) for count in sorted({*counts[:1], *counts[-1:]}))]
    if not needed(config) & GRADIENTS:
        ways = [(given.passes, given.micro_batches)]
    for remat in dict.fromkeys((given.remat, "full")):
        for passes, count in ways:
            if Mode(passes, count, remat) == given:
                continue
            try:
                yield resolve(
                    dataclasses.replace(
                        config,
                        scoring=dataclasses.replace(config.scoring, passes=passes, micro_batches=count),
                        model=dataclasses.replace(config.model, remat=remat),
                    )
                )
            except ConfigError:
                continue  # the rule, or another setting, does not go with it


def _share(config: TrainConfig, shape: DecoderConfig, mesh: dict[str, int]) -> AbstractRun:
    """The run of one device: its part of the rows, and of the model what tensor parallelism leaves it."""
    cut = mesh[DATA] * mesh[FSDP]
    count = config.scoring.micro_batches
    batch = count * math.ceil(config.batch / (cut * count))
    keep = None if config.method == TARGET_ONLY else math.ceil(kept(config) / cut)
    validation = math.ceil(validation_rows(config) / cut)
    config = dataclasses.replace(
        config,
        batch=batch,
        keep=keep,
        keep_fraction=None,
        validation=dataclasses.replace(config.validation, per_step=validation),
    )
    return abstract_run(config, abstract_model(config, _tensor_share(shape, mesh[TENSOR])))


def _tensor_share(shape: DecoderConfig, parts: int) -> DecoderConfig:
    def share(size: int) -> int:
        return size // parts if size % parts == 0 else size

    heads = share(shape.heads)
    return dataclasses.replace(
        shape,
        vocab_size=share(shape.vocab_size),
        heads=heads,
        kv_heads=math.gcd(heads, share(shape.kv_heads)),
        ffn_width=share(shape.ffn_width),
    )


def _parts(config: TrainConfig, run: AbstractRun, mesh: dict[str, int]) -> tuple[int, int, int, int]:
    """Gradients, logits, factors and the rest of what is live at the peak of a step."""
    peak = peak_memory(run.step, *run.arguments)
    trained = {x.shape for x in jax.tree.leaves(floating(run.state.params))}
    gradients = sum(x.bytes for x in peak.arrays if x.shape in trained)
    logits = sum(x.bytes for x in peak.arrays if x.shape not in trained and x.shape[-1:] == (run.vocabulary,))
    rest = peak.bytes - gradients - logits
    factors = min(rest, _factors(config, run))
    # Gradients are cut like their parameters before they are kept.
    return gradients // mesh[FSDP], logits, factors, rest - factors


def _factors(config: TrainConfig, run: AbstractRun) -> int:
    """Bytes of the factors that one pass keeps; none are in two passes, whose layers drop theirs."""
    loss, options = run.selecting.loss_fn, run.selecting.options
    if config.scoring.passes == "two" or isinstance(loss, SplitLoss) or not needed(config) & GRADIENTS:
        return 0
    rows = run.candidates
    if options.validation == "merged" and run.validation is not None:
        rows = jax.eval_shape(lambda *both: jax.tree.map(lambda *x: jnp.concatenate(x), *both), rows, run.validation)
    transform = value_and_per_example_grads(loss, has_aux=options.has_aux)
    grads = jax.eval_shape(transform, run.state.params, run.frozen, rows)[1]
    return sum(bytes_of(x.shape, x.dtype) for x in jax.tree.leaves(grads))


def _bytes(tree: PyTree, shardings: PyTree) -> int:
    """Of the shards that one device holds."""
    shards = jax.tree.map(lambda x, place: bytes_of(place.shard_shape(x.shape), x.dtype), tree, shardings)
    return sum(jax.tree.leaves(shards))
