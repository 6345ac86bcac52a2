"""What rules know of examples before training: embeddings of their texts, and losses of a reference from a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from greats_jax.data import Example, Pool
from greats_jax.errors import DataError
from greats_jax.models import load_sentence_encoder
from greats_jax.training.config import TrainConfig
from greats_jax.training.embeddings import default_cache, embed
from greats_jax.training.inputs import ExampleFacts, Extras
from greats_jax.training.resolving import needed
from greats_jax.training.setup import TaskData


def load_facts(config: TrainConfig, data: TaskData, tokenizer: PreTrainedTokenizerBase) -> ExampleFacts:
    """Everything of the kind that the configuration's method needs; nothing for most methods.

    Raises:
        DataError: The table of reference losses cannot be read or lacks an example.
        ModelError: The sentence encoder cannot be found.
    """
    needs = needed(config)
    pool: Extras = {}
    validation: Extras = {}
    if "embeddings" in needs:
        encoder = load_sentence_encoder(config.embedding.encoder)
        cache = default_cache() if config.embedding.cache is None else Path(config.embedding.cache)
        for examples, into in (data.pool.examples, pool), (data.validation, validation):
            into["embeddings"] = embed(encoder, _texts(examples, tokenizer), cache)
    if "reference_losses" in needs and config.reference.losses is not None:
        pool["reference_losses"] = reference_losses(Path(config.reference.losses), data.pool)
        validation["reference_losses"] = np.zeros(len(data.validation), np.float32)
    return ExampleFacts(pool, validation)


def reference_losses(table: Path, pool: Pool) -> np.ndarray:
    """The loss of every example of the pool from a table of scores, f32[n]; NaN where the table has none.

    Args:
        table: A Parquet file with the columns `id` and `loss`.
        pool: The pool.

    Raises:
        DataError: The file is no such table, or an example of the pool is not in it.
    """
    try:
        columns = pq.read_table(table, columns=["id", "loss"])
    except FileNotFoundError:
        raise DataError(
            f"reference.losses: {table}: there is no such file; make it with greats score --method max_loss"
        ) from None
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"reference.losses: {table} is no table with the columns id and loss ({reason})") from None
    losses = dict(zip(columns["id"].to_pylist(), columns["loss"].to_pylist(), strict=True))
    missing = [example.id for example in pool.examples if example.id not in losses]
    if missing:
        raise DataError(
            f"reference.losses: {table} has no loss for {len(missing)} of the {len(pool)} examples of the pool "
            f"({missing[0]}, say): make it from the same data"
        )
    found = [losses[example.id] for example in pool.examples]
    return np.array([np.nan if loss is None else loss for loss in found], np.float32)


def _texts(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [str(tokenizer.decode(example.input_ids, skip_special_tokens=True)) for example in examples]
