"""Examples as token arrays, and batches of them padded to one length."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from greats_jax.errors import DataError


class Example(NamedTuple):
    """One training example.

    Attributes:
        id: Its name, unique in its pool.
        source: Name of the source it came from.
        input_ids: i32[t].
        label_mask: bool[t]; `label_mask[t]` says that token t is a label, predicted from the tokens before it.
    """

    id: str
    source: str
    input_ids: np.ndarray
    label_mask: np.ndarray


class LanguageBatch(NamedTuple):
    """Examples padded on the right to one length, in the host's memory.

    Attributes:
        input_ids: i32[b, t].
        attention_mask: bool[b, t]; true for real tokens.
        label_mask: bool[b, t]; as in `Example`, false where padded.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    label_mask: np.ndarray


def collate(examples: Sequence[Example], length: int, pad_id: int, rows: int | None = None) -> LanguageBatch:
    """Pads examples to one batch.

    Args:
        examples: The examples.
        length: Tokens per row.
        pad_id: Token to pad with; the masks, not this, say what is padding.
        rows: Number of rows; unset, one per example. Rows beyond the examples are empty: no tokens and no labels.

    Returns:
        A batch [rows, length].

    Raises:
        DataError: An example is longer than `length`, or there are more of them than `rows`.
    """
    rows = len(examples) if rows is None else rows
    if len(examples) > rows:
        raise DataError(f"{len(examples)} examples do not fit in a batch of {rows} rows")
    input_ids = np.full((rows, length), pad_id, np.int32)
    attention_mask = np.zeros((rows, length), bool)
    label_mask = np.zeros((rows, length), bool)
    for row, example in enumerate(examples):
        size = len(example.input_ids)
        if size > length:
            raise DataError(f"example {example.id} has {size} tokens and does not fit in a batch of length {length}")
        input_ids[row, :size] = example.input_ids
        attention_mask[row, :size] = True
        label_mask[row, :size] = example.label_mask
    return LanguageBatch(input_ids, attention_mask, label_mask)
