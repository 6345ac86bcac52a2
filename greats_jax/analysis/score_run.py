"""Scores of a whole pool under a rule, at a model's weights: nothing is trained."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from greats_jax.analysis.score_table import score_columns, write_table
from greats_jax.data import Example, bucket_lengths, collate
from greats_jax.errors import ArgumentError, ConfigError, ModelError, RunError
from greats_jax.models import Decoder, combine, from_pretrained, load_adapter, partition
from greats_jax.selection import Rule, get
from greats_jax.training.config import ScoringConfig, TrainConfig, ValidationConfig
from greats_jax.training.example_facts import load_facts
from greats_jax.training.fingerprints import fingerprint_of_arrays, fingerprint_of_examples
from greats_jax.training.losses import LanguageExample, has_labels, language_model_loss, language_rows
from greats_jax.training.optimizers import build_optimizer
from greats_jax.training.resolving import resolve
from greats_jax.training.result import RunResult
from greats_jax.training.run_folder import CONFIG
from greats_jax.training.scoring import STEERED
from greats_jax.training.scoring_pool import CandidateScores, make_scorer
from greats_jax.training.selecting import Model, prepare_selecting
from greats_jax.training.setup import check_tokens, load_base, load_data, load_initial, load_trained, tokenizer_of
from greats_jax.training.state import TrainState, floating, with_floating

Array = jax.Array
PyTree = Any

_PIECE = 256  # examples of a piece of the table: what is lost at most when the command is stopped


class ScoredModel(NamedTuple):
    """A model to score with, and the configuration that names its pool and task."""

    config: TrainConfig
    model: Decoder
    tokenizer: PreTrainedTokenizerBase


def model_of_config(config: TrainConfig, checkpoint: str | None = None) -> ScoredModel:
    """The model a run of this configuration starts from, or the one in a folder of weights.

    Args:
        config: The configuration.
        checkpoint: A PEFT adapter for the configuration's model, or a Hugging Face model; or a run folder that has one.

    Raises:
        ModelError: The weights cannot be found or read.
    """
    if checkpoint is None:
        return ScoredModel(config, load_initial(config), tokenizer_of(config.model))
    folder = Path(checkpoint)
    if (folder / CONFIG).is_file():
        folder = RunResult.load(folder).weights
    if not folder.is_dir():
        raise ModelError(f"{checkpoint}: there is no such folder; give one with an adapter or a model in it")
    if (folder / "adapter_config.json").is_file():
        model, tokenizer = load_base(config.model, config.seed)
        return ScoredModel(config, load_adapter(model, folder), tokenizer)
    settings = config.model
    model = from_pretrained(folder, settings.dtype, settings.compute_dtype, settings.remat)
    return ScoredModel(replace(config, lora=None), model, tokenizer_of(settings))


def model_of_run(folder: str) -> ScoredModel:
    """The model a finished run ended with.

    Raises:
        GreatsError: The folder holds no finished run, or its weights cannot be read.
    """
    run = RunResult.load(folder)
    return ScoredModel(run.config, *load_trained(run))


def score_pool(
    scored: ScoredModel,
    method: str,
    output: Path,
    batch: int,
    notice: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write the score of every example of the pool to a Parquet file, or continue one that was begun.

    Rules that look at validation examples see the mean gradient of all of the task's, or all of their embeddings. Rules
    in the optimizer's geometry see an optimizer without history, since weights come without one, and rules with a
    memory (`uds`) an empty one. A rule that compares candidates with each other (`normalised`) sees `batch` consecutive
    examples at a time.

    Cost: that of scoring each example once, and one backward pass over the validation examples.

    Args:
        scored: Model, pool and task; the configuration's own rule plays no part.
        method: A rule or an expression of rules.
        output: The file.
        batch: Examples scored at once.
        notice: Told what happens.
        progress: Told how many of how many examples are done.

    Returns:
        Number of examples in the table.

    Raises:
        GreatsError: The rule gives no scores or needs what is not known here, the data cannot be used, or `output`
            holds something else.
    """
    rule = _rule(method)
    config = _scoring_with(scored.config, method)
    data = load_data(config, scored.tokenizer)
    pool = data.pool
    check_tokens(data, scored.model.config.max_length, scored.model.config.vocab_size)
    model = Model(scored.model.config, *partition(scored.model))
    schedule = optax.constant_schedule(config.optimizer.learning_rate)
    facts = load_facts(config, data, scored.tokenizer)
    selecting = prepare_selecting(config, model, scored.tokenizer, schedule)
    optimizer = build_optimizer(config.optimizer, schedule, 1)
    guided = bool(rule.needs & STEERED)
    # A direction found here is never refreshed: the count of calls starts behind the one that would.
    options = replace(selecting.options, validation="cached", refresh_every=2**30, targets=None)
    score = make_scorer(selecting.loss_fn, optimizer, rule, options)
    known = {**facts.pool, **({"sources": pool.source_indices.astype(np.int32)} if "sources" in rule.needs else {})}
    batches = _Batches(pool.examples, batch, pool.pad_id, known)
    # Rules that align are given a direction, and of the rows only their shape; others compare with all of them.
    rows = _Batches(data.validation, batch if guided else len(data.validation), pool.pad_id, facts.validation)
    per_piece = max(1, _PIECE // batch)
    pieces = math.ceil(len(batches) / per_piece)
    state: TrainState | None = None

    def start() -> TrainState:
        """Made when the first piece is: a table that is complete needs none."""
        fresh = TrainState.create(model.params, optimizer, seed=config.seed, reserve_direction=guided)
        if not guided:
            return fresh
        notice(f"finding the direction of {len(data.validation)} validation examples")
        plain = language_model_loss(model.graphdef, combine)
        return fresh._replace(direction=mean_gradient(plain, fresh.params, model.frozen, rows))

    def make(piece: int) -> pa.Table:
        nonlocal state
        state = start() if state is None else state
        numbers = range(piece * per_piece, min(len(batches), (piece + 1) * per_piece))
        found: list[CandidateScores] = []
        for number in numbers:
            at = state._replace(step=jnp.int32(number + 1))
            found.append(score(at, selecting.frozen, batches[number], rows[0])[1])
        first = numbers[0] * batch
        examples = pool.examples[first : first + len(numbers) * batch]
        scores, losses, valid = (
            np.concatenate([np.asarray(getattr(part, name)) for part in found])[: len(examples)]
            for name in CandidateScores._fields
        )
        return score_columns(
            [example.id for example in examples],
            [example.source for example in examples],
            first,
            scores,
            losses,
            valid,
            [len(example.input_ids) for example in examples],
        )

    settings = {
        "method": method,
        "batch": batch,
        "rows_per_piece": per_piece * batch,
        "model": config.model.source,
        "compute_dtype": config.model.compute_dtype or config.model.dtype,
        "scoring_passes": config.scoring.passes,
        "optimizer": asdict(config.optimizer),
        "seed": config.seed,
        "weights": fingerprint_of_arrays((model.params, selecting.frozen)),
        "known": fingerprint_of_arrays(known),
        "pool": fingerprint_of_examples(pool.examples),
        "validation": fingerprint_of_examples(data.validation) if guided else None,
    }
    write_table(
        output, settings, pieces, make, lambda done, _: progress(min(done * per_piece * batch, len(pool)), len(pool))
    )
    return len(pool)


def mean_gradient(loss_fn: Callable[..., Array], params: PyTree, frozen: PyTree, batches: Sequence[Any]) -> PyTree:
    """Mean gradient over the rows of all batches that have labels, like the floating parameters.

    Cost: a forward and a backward pass over the rows, a batch at a time.

    Raises:
        RunError: It is not finite, or no row has labels.
    """

    @jax.jit
    def summed(params: PyTree, frozen: PyTree, rows: LanguageExample) -> tuple[PyTree, Array]:
        labelled = jax.vmap(has_labels)(rows)

        def loss(trained: PyTree) -> Array:
            losses = jax.vmap(loss_fn, in_axes=(None, None, 0))(with_floating(params, trained), frozen, rows)
            return jnp.where(labelled, losses, 0.0).sum()

        return jax.grad(loss)(floating(params)), labelled.sum()

    total, count = summed(params, frozen, batches[0])
    for number in range(1, len(batches)):
        more, rows = summed(params, frozen, batches[number])
        total, count = jax.tree.map(jnp.add, total, more), count + rows
    mean = jax.tree.map(lambda g: (g / jnp.maximum(count, 1)).astype(g.dtype), total)
    if not int(count) or not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(mean)):
        raise RunError("the gradient of the validation examples is not finite, so nothing can be aligned with it")
    return mean


class _Batches(Sequence[LanguageExample]):
    """Examples in their order, in batches of equally many rows (the last filled up with empty ones).

    Rows are padded to one of at most four lengths, each of which is one compilation.
    """

    def __init__(self, examples: Sequence[Example], size: int, pad_id: int, known: Mapping[str, np.ndarray]):
        self._groups = [examples[first : first + size] for first in range(0, len(examples), size)]
        self._size, self._pad_id, self._known = size, pad_id, known
        self._longest = [max(len(example.input_ids) for example in group) for group in self._groups]
        self._edges = bucket_lengths(np.array(self._longest), 4)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, number: int) -> LanguageExample:  # type: ignore[override]
        length = next(edge for edge in self._edges if edge >= self._longest[number])
        batch = collate(self._groups[number], length, self._pad_id, rows=self._size)
        return language_rows(batch, extras={name: self._of_rows(x, number) for name, x in self._known.items()})

    def _of_rows(self, values: np.ndarray, number: int) -> np.ndarray:
        """What is known of the rows of a batch; zeros for empty ones."""
        found = values[number * self._size :][: self._size]
        return np.pad(found, [(0, self._size - len(found))] + [(0, 0)] * (values.ndim - 1))


def _rule(method: str) -> Rule:
    """The rule, if it can score here."""
    try:
        rule = get(method)
    except ArgumentError as error:
        raise ConfigError(f"--method: {error}") from None
    if "per_leaf_alignment" in rule.needs:
        raise ConfigError(f"--method: {method} chooses for every parameter and gives no score per candidate")
    return rule


def _scoring_with(config: TrainConfig, method: str) -> TrainConfig:
    """The configuration with another rule, scored exactly and by all parameters.

    Raises:
        ConfigError: The rule needs something that the configuration does not name.
    """
    exact = ScoringConfig(passes=config.scoring.passes)
    return resolve(replace(config, method=method, scoring=exact, validation=ValidationConfig()))
