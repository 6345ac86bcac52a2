"""A configuration checked, with what follows from its fields: the checks that span several of them."""

import dataclasses
import math
import re

from greats_jax.errors import ArgumentError, ConfigError
from greats_jax.selection import get
from greats_jax.training.config import ScoringConfig, TrainConfig
from greats_jax.training.own_rules import load_rules
from greats_jax.training.step import TARGET_ONLY
from greats_jax.training.trial import try_rule

REGULAR = "regular"


def resolve(config: TrainConfig) -> TrainConfig:
    """Check the fields against each other and fill in those that others determine.

    Args:
        config: A tree whose fields have the right types (the loader sees to that).

    Returns:
        The tree with `keep` (unless the method is regular) and `output` spelled out. Resolving that changes nothing.

    Raises:
        ConfigError: A value is out of its range or contradicts another; the message names both.
    """
    check_ranges(config)
    needs = needed(config)
    if not config.data.sources:
        raise ConfigError("data.sources names no file to train on; give at least one path or data set id")
    for task in (config.task, *config.more_tasks):
        _require(
            task.n_validation >= 1, "task.n_validation", task.n_validation, "at least 1: these steer the selection"
        )
    if config.steps is not None and config.epochs is not None:
        raise ConfigError(f"steps ({config.steps}) and epochs ({config.epochs}) are both given; set one to null")
    if config.validation.refresh_every > 1 and config.validation.mode != "cached":
        raise ConfigError(
            f"validation.refresh_every is {config.validation.refresh_every}, which needs validation.mode=cached"
        )
    if config.model.quantize is not None and config.lora is None:
        raise ConfigError(f"model.quantize is {config.model.quantize}, which only a frozen model can be: set lora")
    if config.model.weights == "random" and config.lora is not None:
        raise ConfigError(
            "model.weights is random, but adapters only change a model that has learnt something: set lora=null"
        )
    _check_scoring(config)
    _check_rule(config, needs)
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed is {config.seed}; it must be a whole number from 0 to {2**32 - 1}")
    keep = kept(config)
    if config.method != TARGET_ONLY:
        try_rule(get(config.method), config.batch, keep)
    config = dataclasses.replace(config, output=_output(config))
    # Left as it was where it is ignored, so that a copy of this file with another method does not keep everything.
    if config.method in (REGULAR, TARGET_ONLY):
        return config
    return dataclasses.replace(config, keep=keep, keep_fraction=None)


def needed(config: TrainConfig) -> frozenset[str]:
    """Signals that the method needs.

    Raises:
        ConfigError: The method is none.
    """
    if config.method == TARGET_ONLY:
        return frozenset()
    load_rules(config.rules)
    try:
        return get(config.method).needs
    except ArgumentError as error:
        also = f"; and {TARGET_ONLY} trains on the validation examples" if "the rules are" in str(error) else ""
        raise ConfigError(f"method: {error}{also}") from None


def total_steps(config: TrainConfig, pool_size: int) -> int:
    """Optimizer updates of a run: `steps`, or what `epochs` passes over `pool_size` examples come to."""
    if config.steps is not None:
        return config.steps
    epochs = 1.0 if config.epochs is None else config.epochs
    return max(1, math.ceil(epochs * pool_size / (config.batch * config.accumulate)))


def kept(config: TrainConfig) -> int:
    """Candidates that a step keeps of its batch.

    Raises:
        ConfigError: `keep` contradicts `keep_fraction` or `batch`.
    """
    if config.method in (REGULAR, TARGET_ONLY):
        return config.batch
    if config.keep is not None:
        if config.keep_fraction is not None:
            raise ConfigError(
                f"keep ({config.keep}) and keep_fraction ({config.keep_fraction}) are both given; set one to null"
            )
        if config.keep > config.batch:
            raise ConfigError(
                f"keep is {config.keep}, more than the {config.batch} candidates of a batch; lower keep or raise batch"
            )
        return config.keep
    fraction = 0.5 if config.keep_fraction is None else config.keep_fraction
    return max(1, round(config.batch * fraction))


def groups_of(config: TrainConfig, row_parts: int) -> int:
    """Groups of candidates that are chosen from apart from each other, where rows are cut into so many parts."""
    whole = config.scoring.scope == "global" or config.method in (REGULAR, TARGET_ONLY)
    return 1 if whole else row_parts


def check_rows(config: TrainConfig, row_parts: int) -> None:
    """Make sure that every device gets as many rows as the others.

    Raises:
        ConfigError: `batch` or `keep` cannot be cut evenly.
    """
    if config.method == TARGET_ONLY:
        return  # its validation rows are few, and on every device where they cannot be cut
    parts = config.scoring.micro_batches
    if config.batch % (parts * row_parts):
        of = (
            f"each of the {parts} micro-batches of a batch ({config.batch})" if parts > 1 else f"batch ({config.batch})"
        )
        raise ConfigError(
            f"mesh: data x fsdp cuts rows into {row_parts} parts, which {of} does not divide into: "
            f"set batch to a multiple of {parts * row_parts}, or give tensor more of the devices"
        )
    groups = groups_of(config, row_parts)
    if kept(config) % groups:
        raise ConfigError(
            f"scoring.scope=per_device chooses the same number on each of {groups} groups of devices, but keep is "
            f"{kept(config)}: set keep (in the place of keep_fraction) to a multiple of {groups}, or raise batch"
        )
    if groups > 1 and parts > 1:
        raise ConfigError("scoring.scope=per_device and scoring.micro_batches both cut a batch: use one of them")


def _check_scoring(config: TrainConfig) -> None:
    """What of the scoring contradicts something else."""
    scoring = config.scoring
    parts = scoring.micro_batches
    if parts > 1 and scoring.passes == "one":
        raise ConfigError(f"scoring.micro_batches is {parts}, which needs scoring.passes=two")
    if config.batch % parts:
        raise ConfigError(f"scoring.micro_batches is {parts}, which does not divide batch ({config.batch})")
    if scoring.alignment == "projected":
        if scoring.projection is None:
            raise ConfigError("scoring.alignment is projected, which needs scoring.projection, e.g. 1024")
        if parts > 1 or config.validation.mode == "cached":
            raise ConfigError(
                "scoring.alignment=projected needs the validation examples in the candidates' pass: set "
                "scoring.micro_batches=1 and validation.mode=merged, or scoring.alignment=exact"
            )
    if scoring.upper_layers is not None and scoring.passes == "two":
        raise ConfigError("scoring.upper_layers resumes the one backward pass; set scoring.passes=one")
    try:
        re.compile(scoring.leaves or "")
    except re.error as error:
        raise ConfigError(f'scoring.leaves: "{scoring.leaves}" is no regular expression ({error})') from None


def _check_rule(config: TrainConfig, needs: frozenset[str]) -> None:
    """What the method's signals ask of other keys."""
    scoring, validation = config.scoring, config.validation
    if config.method == TARGET_ONLY and validation.source == "recent":
        raise ConfigError("method target_only trains on the task's examples, which validation.source=recent replaces")
    if "logit_summaries" in needs and scoring.upper_layers is not None:
        raise ConfigError(f"method {config.method} looks at the logits of all rows: set scoring.upper_layers to null")
    if "per_leaf_alignment" in needs and scoring != ScoringConfig():
        raise ConfigError(f"method {config.method} chooses for every parameter: leave scoring at its defaults")
    if config.more_tasks and validation.source == "recent":
        raise ConfigError("more_tasks and validation.source=recent exclude each other: recent examples have no task")
    if config.more_tasks and validation.combine == "max":
        formed = needs & {"preconditioned_alignment", "per_leaf_alignment"}
        if formed or validation.mode == "cached" or scoring.micro_batches > 1:
            raise ConfigError(
                f"validation.combine=max compares with every validation example, which method {config.method} with "
                f"validation.mode={validation.mode} and scoring.micro_batches={scoring.micro_batches} cannot: use mean "
                "or worst"
            )
    if "reference_losses" in needs:
        reference = config.reference
        if reference.model is not None and reference.losses is not None:
            raise ConfigError("reference.model and reference.losses are both given; set one to null")
        if reference.model is None and reference.losses is None and config.lora is None:
            raise ConfigError(
                f"method {config.method} compares with the model without its adapters, but lora is null: give "
                "reference.model or reference.losses"
            )


def _output(config: TrainConfig) -> str:
    """The run folder with its placeholders filled in."""
    subject = config.task.subject
    task = subject if subject and subject != "all" and "," not in subject else config.task.name
    try:
        return config.output.format(method=_file_name(config.method), seed=config.seed, task=_file_name(task))
    except (KeyError, IndexError, ValueError, AttributeError):
        raise ConfigError(
            f'output: "{config.output}" has a placeholder other than {{method}}, {{seed}} and {{task}}'
        ) from None


def _file_name(name: str) -> str:
    """A method or task as a part of a path: what it has beside letters and digits becomes dashes."""
    return re.sub(r"[^\w.=]+", "-", name).strip("-.")


def check_ranges(config: TrainConfig) -> None:
    """Single fields against their ranges, named by their dotted keys; data, task and lora check their own.

    Raises:
        ConfigError: One is out of its range.
    """
    optimizer, validation = config.optimizer, config.validation
    at_least_one = {
        "batch": config.batch,
        "keep": config.keep,
        "steps": config.steps,
        "accumulate": config.accumulate,
        "evaluate_every": config.evaluate_every,
        "evaluate_batch": config.evaluate_batch,
        "validation.per_step": validation.per_step,
        "validation.refresh_every": validation.refresh_every,
        "validation.window": validation.window,
        "scoring.micro_batches": config.scoring.micro_batches,
        "scoring.projection": config.scoring.projection,
        "scoring.upper_layers": config.scoring.upper_layers,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "checkpoint.keep_last": config.checkpoint.keep_last,
        "guards.skipped_in_a_row": config.guards.skipped_in_a_row,
    }
    above_zero = {
        "keep_fraction": config.keep_fraction,
        "epochs": config.epochs,
        "optimizer.learning_rate": optimizer.learning_rate,
        "optimizer.eps": optimizer.eps,
        "optimizer.clip": optimizer.clip,
        "checkpoint.every_minutes": config.checkpoint.every_minutes,
    }
    not_negative = {
        "optimizer.warmup": optimizer.warmup,
        "optimizer.weight_decay": optimizer.weight_decay,
        "checkpoint.keep_best": config.checkpoint.keep_best,
        "seed": config.seed,
    }
    fractions = {"optimizer.b1": optimizer.b1, "optimizer.b2": optimizer.b2, "optimizer.momentum": optimizer.momentum}
    spike = config.guards.loss_spike
    _require(spike is None or spike > 1, "guards.loss_spike", spike, "above 1 (times the median)")
    for key, value in at_least_one.items():
        _require(value is None or value >= 1, key, value, "at least 1")
    for key, value in above_zero.items():
        _require(value is None or value > 0, key, value, "above 0")
    for key, value in not_negative.items():
        _require(value >= 0, key, value, "0 or more")
    for key, value in fractions.items():
        _require(0 <= value < 1, key, value, "at least 0 and below 1")
    _require((config.keep_fraction or 0) <= 1, "keep_fraction", config.keep_fraction, "at most 1 (all candidates)")


def _require(holds: bool, key: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{key} is {value}, but it must be {wanted}")
