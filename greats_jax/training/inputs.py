"""What enters a step: candidates, validation rows, and what rules need to know of a row beside its tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from greats_jax.data import Candidates, CandidateSampler, LanguageBatch, collate
from greats_jax.training.config import TrainConfig
from greats_jax.training.draws import recent_indices, validation_indices
from greats_jax.training.losses import LanguageExample
from greats_jax.training.resolving import needed
from greats_jax.training.scoring import GUIDED, STEERED
from greats_jax.training.setup import TaskData
from greats_jax.training.step import TARGET_ONLY
from greats_jax.training.targets import Targets

Extras = dict[str, np.ndarray]


class StepInputs(NamedTuple):
    """The inputs of one step, on the host.

    Attributes:
        candidates: What is chosen from.
        candidate_extras: Arrays with the candidates on axis 0, by name.
        validation: What steers the choice; None for a rule that looks at none.
        validation_extras: The same names, with the validation rows on axis 0.
    """

    candidates: Candidates
    candidate_extras: Extras
    validation: LanguageBatch | None
    validation_extras: Extras


class ExampleFacts(NamedTuple):
    """What is known of examples before training, by name of the signal.

    Attributes:
        pool: Arrays with the pool's examples on axis 0.
        validation: The same for the task's validation examples.
    """

    pool: Extras
    validation: Extras


def source_of(frozen: Any, row: LanguageExample) -> Any:
    """Number of the source a row came from (a row signal)."""
    return row.extras["sources"]


def fact(name: str) -> Callable[[Any, LanguageExample], Any]:
    """The row signal that was computed before training."""
    return lambda frozen, row: row.extras[name]


def targets_of(config: TrainConfig) -> Targets | None:
    """The target tasks that a run serves; None for one."""
    if not config.more_tasks:
        return None
    return Targets(lambda row: row.extras["task"], 1 + len(config.more_tasks), config.validation.combine)


def make_inputs(config: TrainConfig, data: TaskData, facts: ExampleFacts) -> Callable[[int], StepInputs]:
    """Build `inputs(number)`, a pure function: the inputs of any micro-batch.

    Candidates and validation rows are padded to one length where they share a pass. A rule that looks at no validation
    example gets none, and its batches are no longer than its candidates.
    """
    needs = needed(config)
    longest = max(len(example.input_ids) for example in data.validation)
    merged = bool(needs & STEERED) and config.validation.mode == "merged"
    recent = config.validation.source == "recent"
    sampler = CandidateSampler(
        data.pool,
        config.batch,
        config.seed,
        buckets=config.data.buckets,
        group_by_length=config.data.group_by_length,
        min_length=longest if merged and not recent else 0,
    )
    pad_id, per_step = data.pool.pad_id, config.validation.per_step

    def target_only(number: int) -> StepInputs:
        rows = validation_indices(len(data.validation), per_step, config.seed, number)
        examples = [data.validation[i] for i in rows]
        batch = collate(examples, longest, pad_id)
        # The task's examples come from no source of the pool: their source has the number after the last.
        sources = np.full(len(rows), len(data.pool.sources), np.int32)
        candidates = Candidates(
            batch, tuple(example.id for example in examples), sources, rows, 1 - float(batch.attention_mask.mean())
        )
        return StepInputs(candidates, {}, None, {})

    def of_candidates(candidates: Candidates) -> Extras:
        return _extras(needs, facts.pool, candidates.indices, candidates.sources, np.zeros(config.batch, np.int32))

    def guided(number: int) -> StepInputs:
        if recent:
            rows = recent_indices(sampler, per_step, config.validation.window, config.seed, number)
            examples, known, tasks = [data.pool[i] for i in rows], facts.pool, np.zeros(len(rows), np.int32)
        else:
            rows = validation_indices(len(data.validation), per_step, config.seed, number)
            examples, known, tasks = [data.validation[i] for i in rows], facts.validation, data.validation_tasks[rows]
        longest_row = max(len(example.input_ids) for example in examples)
        candidates = sampler(number, longest_row if merged else 0)
        fixed = sampler.bucket_lengths[-1] if recent else longest
        batch = collate(examples, candidates.batch.input_ids.shape[1] if merged else fixed, pad_id)
        return StepInputs(
            candidates,
            of_candidates(candidates),
            batch,
            _extras(needs, known, rows, np.zeros(len(rows), np.int32), tasks),
        )

    def unguided(number: int) -> StepInputs:
        candidates = sampler(number)
        return StepInputs(candidates, of_candidates(candidates), None, {})

    if config.method == TARGET_ONLY:
        return target_only
    return guided if needs & GUIDED else unguided


def _extras(
    needs: frozenset[str], known: Mapping[str, np.ndarray], rows: np.ndarray, sources: np.ndarray, tasks: np.ndarray
) -> Extras:
    extras = {name: values[rows] for name, values in known.items()}
    if "sources" in needs:
        extras["sources"] = sources.astype(np.int32)
    return {**extras, "task": tasks}
