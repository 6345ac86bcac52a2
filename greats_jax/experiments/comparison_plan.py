"""The runs of a comparison, each checked before the first begins."""

import dataclasses
import math
from pathlib import Path
from typing import NamedTuple

from greats_jax.errors import ConfigError
from greats_jax.experiments.comparison_config import (
    CONTROLS,
    ComparisonConfig,
    Variant,
    all_methods,
    described,
    file_name,
)
from greats_jax.training.config import DistributedConfig, TrainConfig
from greats_jax.training.resolving import resolve
from greats_jax.training.trackers import check_trackers

RUNS = "runs"
"""Folder of the run folders, inside that of the comparison."""

_EVALUATIONS = 10  # a run without evaluate_every is evaluated about this often


class PlannedRun(NamedTuple):
    """One run of a comparison.

    Attributes:
        name: Name of its folder.
        setting: Value of the changing setting, as tables name it; "" where nothing changes.
        method: The method, as tables name it.
        seed: Its seed.
        config: Its resolved configuration.
    """

    name: str
    setting: str
    method: str
    seed: int
    config: TrainConfig

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output)


class Plan(NamedTuple):
    """Everything that a comparison does, in order.

    Attributes:
        folder: The comparison's folder.
        runs: The runs; those of one seed are together, so that a comparison that is stopped is balanced.
        target: The method that time-to-target is measured against.
        keep_weights: Whether weights and checkpoints of finished runs stay.
        settings: Values of the changing setting, in the order of tables.
        methods: Methods, in the order of tables.
        asked: Those of them that the comparison is about; the others are controls.
        variants: Rule and settings of the methods that have more than the rule they are called by, by name.
        compilation_cache: Where compiled programs are kept; None for the comparison's folder.
    """

    folder: Path
    runs: tuple[PlannedRun, ...]
    target: str
    keep_weights: bool
    settings: tuple[str, ...]
    methods: tuple[str, ...]
    asked: tuple[str, ...]
    variants: dict[str, str]
    compilation_cache: str | None


def plan_comparison(config: ComparisonConfig) -> Plan:
    """Every run of a comparison.

    Raises:
        ConfigError: The configuration of a run is wrong; the message names the run.
    """
    methods = all_methods(config)
    checked = {
        (value.name, method.name): _checked(config, value, method) for value in config.vary for method in methods
    }
    runs = []
    for seed in config.seeds:
        for value in config.vary:
            for method in methods:
                name = "-".join(filter(None, (file_name(value.name), file_name(method.name), str(seed))))
                output = str(config.output / RUNS / name)
                own = dataclasses.replace(checked[value.name, method.name], seed=seed, output=output)
                runs.append(PlannedRun(name, value.name, method.name, seed, own))
    first, *others = {own.compilation_cache: None for own in checked.values()}
    if others:
        raise ConfigError(f"compilation_cache in {config.file}: the runs of a comparison share one; put it into set")
    return Plan(
        folder=config.output,
        runs=tuple(runs),
        target=config.target,
        keep_weights=config.keep_weights,
        settings=tuple(value.name for value in config.vary),
        methods=tuple(method.name for method in methods),
        asked=tuple(m.name for m in config.methods if m.name not in CONTROLS) or tuple(m.name for m in config.methods),
        variants={method.name: text for method in methods if (text := described(method)) != method.name},
        compilation_cache=first,
    )


def _checked(config: ComparisonConfig, value: Variant, method: Variant) -> TrainConfig:
    """The configuration of the runs of one method in one setting, but for their seeds."""
    try:
        run = config.train_config(value, method, config.seeds[0], config.output / RUNS / "run")
        if run.evaluate_every is None:
            run = dataclasses.replace(run, evaluate_every=_evaluate_every(run))
        if run.distributed != DistributedConfig():
            raise ConfigError("distributed: the runs of a comparison are of one process; leave its keys null")
        run = resolve(run)
        check_trackers(run)
        return run
    except ConfigError as error:
        named = " with ".join(filter(None, (method.name, value.name)))
        raise ConfigError(f"the runs of {named}: {error}") from None


def _evaluate_every(run: TrainConfig) -> int:
    if run.steps is None:
        raise ConfigError(
            "evaluate_every is null, but equal times are read off curves: give it, or steps in the place of epochs"
        )
    return max(1, math.ceil(run.steps / _EVALUATIONS))
