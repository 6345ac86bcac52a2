"""Which examples were chosen most and least often, and what they say."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from greats_jax.data import Example, build_pool
from greats_jax.errors import GreatsError
from greats_jax.experiments.report.picks import Candidacies, keep_share
from greats_jax.models import load_tokenizer
from greats_jax.training.config import TrainConfig


class Standing(NamedTuple):
    """How one example fared over the runs of a method.

    Attributes:
        id: Its name.
        source: Its source.
        considered: Times it was a candidate.
        chosen: Times it was chosen.
        score: Mean score; NaN where the rule gives none.
        loss: Mean loss, nats per label token; NaN where it was not computed.
        rate: Share of its candidacies in which it was chosen, with one average candidacy added.
    """

    id: str
    source: str
    considered: int
    chosen: int
    score: float
    loss: float
    rate: float


def standings(runs: Sequence[Candidacies]) -> list[Standing]:
    """Every example that was a candidate, most chosen first.

    Ranked by `rate`: with one average candidacy added to each, an example that was seen once is not ahead of one that
    was chosen nine times of ten. Equal rates go by the mean score.

    Args:
        runs: Runs of one method.
    """
    prior = float(np.mean([keep_share(run) for run in runs]))
    names: dict[str, int] = {}
    sources: dict[int, str] = {}
    columns = []
    for run in runs:
        index = np.array([names.setdefault(name, len(names)) for name in run.names], np.int64)
        first = np.unique(run.example, return_index=True)[1]
        sources |= dict(zip(index.tolist(), [run.sources[run.source[row]] for row in first], strict=True))
        columns.append((index[run.example], run.chosen, run.score, run.loss))
    example, chosen, score, loss = (np.concatenate(column) for column in zip(*columns, strict=True))
    considered = np.bincount(example, minlength=len(names))
    picked = np.bincount(example, weights=chosen, minlength=len(names))
    rate = (picked + prior) / (considered + 1)
    scores, losses = _means(example, score, len(names)), _means(example, loss, len(names))
    order = np.lexsort((np.where(np.isnan(scores), 0, -scores), -rate))
    known = list(names)
    return [
        Standing(
            known[i], sources[i], int(considered[i]), int(picked[i]), float(scores[i]), float(losses[i]), float(rate[i])
        )
        for i in order.tolist()
    ]


class Texts(NamedTuple):
    """What is known of the examples of a pool, read again.

    Attributes:
        lengths: Tokens by id; empty where the data are gone.
        examples: Examples by id.
        tokenizer: What turns tokens into text; None where the data are gone.
        missing: Why there are none; "" where there are.
    """

    lengths: Mapping[str, int]
    examples: Mapping[str, Example]
    tokenizer: PreTrainedTokenizerBase | None
    missing: str

    def of(self, name: str) -> tuple[tuple[str, bool], ...]:
        """The text of an example in parts, each with whether it is learned; none where it is not known."""
        example = self.examples.get(name)
        if example is None or self.tokenizer is None:
            return ()
        cuts = np.flatnonzero(np.diff(example.label_mask)) + 1
        parts = []
        for ids, learned in zip(np.split(example.input_ids, cuts), np.split(example.label_mask, cuts), strict=True):
            if text := str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip():
                parts.append((text, bool(learned[0])))
        return tuple(parts)


def read_texts(config: TrainConfig) -> Texts:
    """Build the pool of a run again, from its configuration.

    The examples of a task are in it too, so that it serves every seed: which were held out is another matter.
    """
    try:
        tokenizer = load_tokenizer(config.model.tokenizer or config.model.source)
        pool = build_pool(config.data, tokenizer)
    except (GreatsError, OSError) as error:
        return Texts({}, {}, None, " ".join(str(error).split()))
    examples = {example.id: example for example in pool.examples}
    return Texts({name: len(example.input_ids) for name, example in examples.items()}, examples, tokenizer, "")


def _means(index: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Means of the finite values of each index; NaN where there is none."""
    known = np.isfinite(values)
    total = np.bincount(index[known], weights=values[known], minlength=count)
    number = np.bincount(index[known], minlength=count)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
