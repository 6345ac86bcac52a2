"""From a resolved configuration to what a run works on: tokenizer, model, pool and target task."""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from transformers import PreTrainedTokenizerBase

from greats_jax.data import Example, Pool, build_pool
from greats_jax.data.building import padding_token
from greats_jax.errors import DataError, RunError, TaskError
from greats_jax.models import Decoder, add_lora, from_pretrained, from_shape, load_adapter, load_tokenizer
from greats_jax.models.loading import Shardings, read_shape
from greats_jax.models.lora import copied
from greats_jax.tasks import load_task
from greats_jax.tasks.questions import Benchmark
from greats_jax.training.config import ModelConfig, TrainConfig
from greats_jax.training.mesh import decoder_shardings
from greats_jax.training.result import RunResult
from greats_jax.training.shelf import Shelf


class TaskData(NamedTuple):
    """The examples of a run.

    Attributes:
        pool: What candidates are drawn from; none of the tasks' own examples is in it.
        validation: The examples selection serves.
        test: The examples that only measure.
        tasks: Names of the target tasks; one, unless the run serves several.
        validation_tasks: i32[m], which of `tasks` each validation example belongs to.
        test_tasks: The same for test examples.
        benchmarks: Questions with answers of each task; None for one that has none.
    """

    pool: Pool
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    tasks: tuple[str, ...]
    validation_tasks: np.ndarray
    test_tasks: np.ndarray
    benchmarks: tuple[Benchmark | None, ...] = ()

    def of_task(self, number: int) -> tuple[list[Example], list[Example]]:
        """Validation and test examples of one task."""
        parts = (self.validation, self.validation_tasks), (self.test, self.test_tasks)
        validation, test = ([e for e, task in zip(*part, strict=True) if task == number] for part in parts)
        return validation, test


def load_data(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """Read the pool and the target tasks.

    Raises:
        DataError: A source cannot be read or gives no example.
        TaskError: A task's own data are missing or too few, or two tasks are the same.
    """
    return load_tasks(config, tokenizer, build_pool(config.data, tokenizer))


def load_tasks(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, pool: Pool) -> TaskData:
    """The target tasks, and what they leave of a pool.

    Raises:
        DataError: A file of examples cannot be read.
        TaskError: A task's own data are missing or too few, or two tasks are the same.
    """
    loaded = []
    for task_config in (config.task, *config.more_tasks):
        task = load_task(task_config, tokenizer, config.data, pool, config.seed)
        pool = task.pool
        loaded.append(task)
    names = tuple(task.name for task in loaded)
    if len(set(names)) < len(names):
        raise TaskError(f"more_tasks: the tasks {', '.join(names)} are not all different; name each once")
    return TaskData(
        pool,
        tuple(example for task in loaded for example in task.validation),
        tuple(example for task in loaded for example in task.test),
        names,
        np.repeat(np.arange(len(loaded), dtype=np.int32), [len(task.validation) for task in loaded]),
        np.repeat(np.arange(len(loaded), dtype=np.int32), [len(task.test) for task in loaded]),
        tuple(task.benchmark for task in loaded),
    )


def load_measured_data(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """The target tasks, to be measured and not trained for; the pool is empty unless a task is a part of it.

    Raises:
        DataError: A source cannot be read or gives no example.
        TaskError: A task's own data are missing or too few, or two tasks are the same.
    """
    if any(task.name == "holdout" for task in (config.task, *config.more_tasks)):
        return load_data(config, tokenizer)
    none = np.empty(0, np.int32)
    pool = Pool((), (), (), none, none, None, {}, padding_token(tokenizer))
    return load_tasks(config, tokenizer, pool)


def load_base(config: ModelConfig, seed: int = 0) -> tuple[Decoder, PreTrainedTokenizerBase]:
    """The model as it is before training, without adapters, and its tokenizer.

    Args:
        config: The model.
        seed: Of weights that are not read but drawn.

    Raises:
        ModelError: The model cannot be found or read.
    """
    return _first(config, seed), tokenizer_of(config)


def tokenizer_of(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a model.

    Raises:
        ModelError: It cannot be found or read.
    """
    return load_tokenizer(config.tokenizer or config.source)


def load_initial(config: TrainConfig, mesh: Mesh | None = None, shelf: Shelf | None = None) -> Decoder:
    """The model as a run starts from it, with fresh adapters if it has any; on one device if no mesh is given.

    Args:
        config: The resolved configuration.
        mesh: Where its arrays go.
        shelf: Holds the weights under adapters, which no run changes; None to read them.
    """

    def load() -> Decoder:
        return load_placed(config.model, config.model.source, mesh, config.seed)

    if config.lora is None:
        return load()
    seed = None if config.model.weights == "pretrained" else config.seed
    model = load() if shelf is None else copied(shelf.take("model", (config.model, config.mesh, seed), load))
    return add_lora(model, config.lora, jax.random.key(config.seed))


def load_placed(config: ModelConfig, source: str | Path, mesh: Mesh | None, seed: int = 0) -> Decoder:
    """A model whose weights are read, or drawn, straight into their shards, if there is a mesh.

    Raises:
        ModelError: It cannot be found or read.
    """
    config = dataclasses.replace(config, source=str(source))
    if mesh is None:
        return _first(config, seed)
    shape = read_shape(source, config.dtype, config.compute_dtype, config.remat)
    model = _first(config, seed, functools.partial(decoder_shardings, mesh, shape))
    model.mesh = mesh
    return model


def check_tokens(data: TaskData, longest: int, vocabulary: int) -> None:
    """Make sure that the model has a position and an embedding for every token.

    Raises:
        DataError: An example is longer than the model's context, or the tokenizer is not one for this model.
    """
    rows = [e.input_ids for e in (*data.pool.examples, *data.validation, *data.test)]
    highest = max(int(row.max(initial=0)) for row in rows)
    if highest >= vocabulary:
        raise DataError(
            f"the tokenizer gives token {highest}, but the model knows tokens 0 to {vocabulary - 1}: "
            "set model.tokenizer to one that was made for it"
        )
    found = max(len(row) for row in rows)
    if found > longest:
        raise DataError(
            f"the longest example has {found} tokens, but the model has {longest} positions: "
            f"set data.max_length={longest}"
        )


def load_trained(run: RunResult) -> tuple[Decoder, PreTrainedTokenizerBase]:
    """The model a run ended with: its full weights, or the pretrained model with the trained adapters.

    Raises:
        RunError: The weights of the run are gone.
        ModelError: They, or the model it started from, cannot be read.
    """
    config = run.config.model
    if not run.weights.exists():
        raise RunError(
            f"{run.weights}: the weights of this run were not kept; a comparison keeps them with keep_weights: true, "
            "and --base takes the model as it was before training"
        )
    if run.config.lora is None:
        return _pretrained(config, run.weights), load_tokenizer(run.weights)
    model, tokenizer = load_base(config, run.config.seed)
    return load_adapter(model, run.weights), tokenizer


def _first(config: ModelConfig, seed: int, shardings: Shardings | None = None) -> Decoder:
    """The weights that a run begins with: read, or drawn from its seed."""
    if config.weights == "pretrained":
        return _pretrained(config, config.source, shardings)
    key = jax.random.key(seed)
    return from_shape(config.source, key, config.dtype, config.compute_dtype, config.remat, shardings)


def _pretrained(config: ModelConfig, source: str | Path, shardings: Shardings | None = None) -> Decoder:
    """The weights at `source`, in the dtypes and with the rematerialisation of the configuration."""
    return from_pretrained(source, config.dtype, config.compute_dtype, config.remat, shardings, config.quantize)
