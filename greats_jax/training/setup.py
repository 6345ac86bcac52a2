"""From a resolved configuration to what a run works on: tokenizer, model, pool and target task."""

from pathlib import Path
from typing import NamedTuple

import jax
from transformers import PreTrainedTokenizerBase

from greats_jax.data import Example, Pool, build_pool
from greats_jax.errors import DataError
from greats_jax.models import Decoder, add_lora, from_pretrained, load_adapter, load_tokenizer
from greats_jax.tasks import load_task
from greats_jax.training.config import ModelConfig, TrainConfig
from greats_jax.training.result import RunResult


class TaskData(NamedTuple):
    """The examples of a run.

    Attributes:
        pool: What candidates are drawn from; none of the task's own examples is in it.
        validation: The examples selection serves.
        test: The examples that only measure.
    """

    pool: Pool
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


def load_data(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> TaskData:
    """Read the pool and the target task.

    Raises:
        DataError: A source cannot be read or gives no example.
        TaskError: The task's own data are missing or too few.
    """
    task = load_task(config.task, tokenizer, config.data, build_pool(config.data, tokenizer), config.seed)
    return TaskData(task.pool, task.validation, task.test)


def load_base(config: ModelConfig) -> tuple[Decoder, PreTrainedTokenizerBase]:
    """The pretrained model and its tokenizer.

    Raises:
        ModelError: The model cannot be found or read.
    """
    return _pretrained(config, config.source), load_tokenizer(config.source)


def load_initial(config: TrainConfig) -> Decoder:
    """The model as a run starts from it: with fresh adapters if it has any."""
    model = _pretrained(config.model, config.model.source)
    return model if config.lora is None else add_lora(model, config.lora, jax.random.key(config.seed))


def check_lengths(data: TaskData, longest: int) -> None:
    """Make sure that the model has a position for every token.

    Raises:
        DataError: An example is longer than the model's context.
    """
    found = max(len(e.input_ids) for e in (*data.pool.examples, *data.validation, *data.test))
    if found > longest:
        raise DataError(
            f"the longest example has {found} tokens, but the model has {longest} positions: "
            f"set data.max_length={longest}"
        )


def load_trained(run: RunResult) -> tuple[Decoder, PreTrainedTokenizerBase]:
    """The model a run ended with: its full weights, or the pretrained model with the trained adapters.

    Raises:
        ModelError: The weights of the run, or the model it started from, cannot be read.
    """
    config = run.config.model
    if run.config.lora is None:
        return _pretrained(config, run.weights), load_tokenizer(run.weights)
    model, tokenizer = load_base(config)
    return load_adapter(model, run.weights), tokenizer


def _pretrained(config: ModelConfig, source: str | Path) -> Decoder:
    """The weights at `source`, in the dtypes and with the rematerialisation of the configuration."""
    return from_pretrained(source, config.dtype, config.compute_dtype, config.remat)
