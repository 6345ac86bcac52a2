"""`greats evaluate`."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from greats_jax.cli.progress import Progress
from greats_jax.cli.tables import aligned
from greats_jax.errors import ConfigError
from greats_jax.models import combine, partition
from greats_jax.tasks.measuring import OVER_QUESTIONS, Measured
from greats_jax.training.config import TrainConfig
from greats_jax.training.config_loading import from_tree, plain, split_override
from greats_jax.training.config_values import Origin
from greats_jax.training.evaluation import (
    evaluate_tasks,
    evaluation_sets,
    measure_benchmarks,
    row_losses,
    too_long,
)
from greats_jax.training.jsonl import dumps
from greats_jax.training.losses import language_model_loss
from greats_jax.training.resolving import check_ranges
from greats_jax.training.result import RunResult
from greats_jax.training.run_folder import CONFIG, make_room, write_whole
from greats_jax.training.setup import check_tokens, load_base, load_measured_data, load_trained

_MEASURED = ("data", "task", "more_tasks", "evaluate_batch")
"""Settings that say what is measured. The others belong to the run, whose weights are there."""


def evaluate(
    folder: str, overrides: Sequence[str] = (), base: bool = False, n_test: int | None = None, output: str | None = None
) -> int:
    """Measure the model of a finished run on its task, or on another, from the data as they are now.

    Args:
        folder: The run folder.
        overrides: Settings laid over the configuration of the run; one that names a task takes the place of the run's.
        base: Measure the model as the run found it.
        n_test: Test examples, in place of the task's.
        output: File to write every answer to, as JSON.
    """
    run = RunResult.load(folder)
    config = measured_config(run, overrides, n_test)
    if output is not None:
        make_room(Path(output), "--output")
    model, tokenizer = load_base(run.config.model, run.config.seed) if base else load_trained(run)
    data = load_measured_data(config, tokenizer)
    check_tokens(data, model.config.max_length, model.config.vocab_size)
    graphdef, params, frozen = partition(model)
    which = run.config.model.source if base else run.weights
    print(f"{which}: {len(data.validation)} validation and {len(data.test)} test examples", file=sys.stderr)
    scalars = evaluate_tasks(
        evaluation_sets(data, config.evaluate_batch), row_losses(language_model_loss(graphdef, combine)), params, frozen
    )
    for split, examples in ("validation", data.validation), ("test", data.test):
        if not examples:
            continue
        print(f"{split}_perplexity {scalars[f'{split}_perplexity']:.4f}  {split}_loss {scalars[f'{split}_loss']:.4f}")
    with Progress("questions") as progress:
        measured = measure_benchmarks(data, model, tokenizer, config, progress=progress.count)
    for notice in too_long(measured, config.data.max_length):
        print(notice, file=sys.stderr)
    for name, one in measured.items():
        print(f"\n{score_table(name, one)}")
    if output is not None:
        record = {"run": str(folder), "weights": "base" if base else "trained", "config": plain(config)}
        whole = json.loads(dumps(record | as_record(scalars, measured)))
        write_whole(Path(output), json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
        print(f"answers: {output}", file=sys.stderr)
    return 0


def measured_config(run: RunResult, overrides: Sequence[str], n_test: int | None) -> TrainConfig:
    """The configuration of a run with settings laid over it.

    Where they name the task, nothing of the run's own tasks is kept: a path or a subject of one means nothing to
    another.

    Raises:
        ConfigError: A setting is wrong, or says how to train.
        TaskError: A task lacks what it needs.
    """
    settings = [split_override(text) for text in overrides]
    if n_test is not None:
        settings.append(split_override(f"task.n_test={n_test}"))
    keys = [key for key, _ in settings]
    tree = plain(run.config)
    if ("task",) in keys or ("task", "name") in keys:
        tree = {key: value for key, value in tree.items() if key not in ("task", "more_tasks")}
    config = from_tree(tree, settings, Origin(str(run.folder / CONFIG), tuple(keys), TrainConfig))
    without = next((key for key in keys if key[0] not in _MEASURED), None)
    if without is not None:
        raise ConfigError(
            f"{'.'.join(without)} changes nothing about a run that has ended: greats evaluate takes settings of "
            f"{', '.join(_MEASURED)}"
        )
    check_ranges(config)
    return config


def score_table(name: str, measured: Measured) -> str:
    """Scores of a benchmark by group, and their means."""
    names = [score for score in measured.scores if not score.endswith(OVER_QUESTIONS)]
    counts = dict.fromkeys(measured.groups, 0)
    for answer in measured.answers:
        counts[answer.group] += 1
    rows: list[tuple[str, ...]] = [(name, "questions", *(score.replace("_", " ") for score in names))]
    means = "mean"
    if len(measured.groups) > 1:
        rows += [_row(group, counts[group], scores, names) for group, scores in measured.groups.items()]
        means = "mean over groups"
    rows.append(_row(means, measured.questions, measured.scores, names))
    if len(measured.groups) > 1:
        over = {score: measured.scores[score + OVER_QUESTIONS] for score in names}
        rows.append(_row("mean over questions", measured.questions, over, names))
    return aligned(rows)


def as_record(scalars: Mapping[str, float], measured: Mapping[str, Measured]) -> dict[str, Any]:
    """What was measured as plain values: perplexities, and for each task scores, groups and every answer."""
    tasks = {
        name: {**one._asdict(), "answers": [answer._asdict() for answer in one.answers]}
        for name, one in measured.items()
    }
    return {"metrics": {name: value for name, value in scalars.items() if name != "seconds"}, "tasks": tasks}


def _row(label: str, count: int, scores: Mapping[str, float], names: Sequence[str]) -> tuple[str, ...]:
    return label, f"{count:,}", *(f"{scores[name]:.4f}" for name in names)
