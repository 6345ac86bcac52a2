"""The fidelity analysis of a configuration: train a little, then try many subsets of some batches and compare.

Everything is measured at one state of the model and the optimizer, on candidates and validation rows that a run would
see next; nothing is written and no subset is learned from.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from greats_jax.analysis.taylor import curvatures, hessian_times, inner, loss_along, predicted, unit_update
from greats_jax.data import CandidateSampler, collate
from greats_jax.errors import ConfigError, RunError
from greats_jax.ghost import PerExampleGrads, value_and_per_example_grads
from greats_jax.models import combine, partition
from greats_jax.training.config import TrainConfig
from greats_jax.training.draws import validation_rows
from greats_jax.training.losses import LanguageExample, has_labels, label_count, language_model_loss, language_rows
from greats_jax.training.optimizers import build_optimizer, build_schedule
from greats_jax.training.preconditioning import precondition
from greats_jax.training.resolving import kept, resolve, total_steps
from greats_jax.training.setup import check_tokens, load_data, load_initial, tokenizer_of
from greats_jax.training.state import TrainState, floating, with_floating
from greats_jax.training.step import make_selective_step

Array = jax.Array
PyTree = Any

GRADIENT_DESCENT, OPTIMIZER = "gradient descent", "optimizer"
"""The two kinds of step: against the mean gradient of a subset, and the configured optimizer's update for it."""

PREDICTIONS = {
    GRADIENT_DESCENT: ("first order", "Gram matrix", "Hessian"),
    OPTIMIZER: ("first order", "Gram matrix", "preconditioned", "update", "update and Hessian"),
}
"""What is compared with the actual change, for each kind of step."""

_SUBSETS = 0x737562
"""Keeps the draw of subsets apart from every other use of the run's seed."""

_FEWEST = 6  # subsets of a batch, below which their order says nothing
_SWEPT = 0.25  # share of the subsets that are tried at every rate and not at the main one alone


@dataclass(frozen=True)
class TaylorPlan:
    """How much to try.

    Attributes:
        subsets: Subsets in all; at most so many as there are.
        batches: Batches of candidates they are spread over; more where a batch has too few subsets.
        after: Updates to train for first, with all candidates, so that the optimizer has a history.
        learning_rate: Rate of the steps; None for the peak of the configuration's schedule.
        factors: Multiples of that rate which a part of the subsets is tried at; 1 among them.
    """

    subsets: int = 200
    batches: int = 4
    after: int = 20
    learning_rate: float | None = None
    factors: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0)


class Outcome(NamedTuple):
    """One subset, stepped along at one rate.

    Attributes:
        batch: Number of the batch of candidates, from 0.
        subset: Number of the subset within it.
        members: Ids of the examples.
        step: Kind of step.
        rate: Learning rate.
        before: Validation loss without the step, nats per token.
        actual: Change of the validation loss by the step.
        predictions: Predicted changes, by name; NaN for what was not computed (the update's curvature is computed for
            subsets that are tried at every rate).
    """

    batch: int
    subset: int
    members: tuple[str, ...]
    step: str
    rate: float
    before: float
    actual: float
    predictions: dict[str, float]


@dataclass(frozen=True)
class TaylorResult:
    """Outcomes, and what they were measured on.

    Attributes:
        outcomes: One per subset, kind of step and rate.
        config: The resolved configuration.
        plan: What was asked for.
        rate: The main learning rate.
        keep: Size of the subsets.
        validation: Validation rows of a batch.
        left_out: Candidates that have no labels, or whose loss or gradient is not finite.
        resolution: Rounding of a loss in the model's compute dtype, nats per token.
    """

    outcomes: tuple[Outcome, ...]
    config: TrainConfig
    plan: TaylorPlan
    rate: float
    keep: int
    validation: int
    left_out: int
    resolution: float


class _Batch(NamedTuple):
    """What is computed once for a batch: gradients, which rows are usable, loss, and the terms of the predictions."""

    grads: PerExampleGrads
    usable: Array
    before: Array
    gradient: PyTree
    slopes: Array
    preconditioned: Array
    gram: Array
    curvature: Array


class _Programs(NamedTuple):
    """The compiled parts of the analysis; see `_programs`."""

    expand: Callable[..., _Batch]
    directions: Callable[..., tuple[PyTree, PyTree]]
    curvature: Callable[..., Array]
    loss_after: Callable[..., Array]


def run_taylor(
    config: TrainConfig,
    plan: TaylorPlan,
    notice: Callable[[str], None] = lambda text: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TaylorResult:
    """Measure how well the change of the validation loss is predicted.

    Cost: per batch one backward pass over the candidates and n Hessian-vector products of the validation loss; per
    subset one update and two forward passes over the validation rows, and for a quarter of them one Hessian-vector
    product and two more passes at each other rate.

    Args:
        config: What to analyse; its rule plays no part, its `keep` is the size of the subsets.
        plan: How much to try.
        notice: Told what happens next.
        progress: Told after every subset how many of how many are done.

    Raises:
        GreatsError: The configuration, the model or the data cannot be used, or the batches leave nothing to choose.
    """
    config = resolve(replace(config, accumulate=1))
    keep = kept(replace(config, method="random_k"))  # a rule that keeps less than all, whichever is configured
    per_batch, batches = _spread(plan, config.batch, keep)
    rate = config.optimizer.learning_rate if plan.learning_rate is None else plan.learning_rate
    data = load_data(config, tokenizer_of(config.model))
    steps = total_steps(config, len(data.pool))
    if plan.after > steps:
        raise ConfigError(f"--after is {plan.after}, but the run has {steps} updates; give fewer, or raise steps")
    sampler = CandidateSampler(data.pool, config.batch, config.seed, buckets=1)
    model = load_initial(config)
    check_tokens(data, model.config.max_length, model.config.vocab_size)
    graphdef, params, frozen = partition(model)
    has_dropout = config.lora is not None and config.lora.dropout > 0
    loss_fn = language_model_loss(graphdef, combine, dropout=has_dropout)
    if plan.after:
        notice(f"training for {plan.after} update{'s' * (plan.after > 1)} on all candidates")
    state = _warm_up(config, loss_fn, params, frozen, sampler, plan.after, steps, has_dropout)
    groups = "1 batch" if batches == 1 else f"{batches} batches"
    notice(f"comparing {per_batch * batches} subsets of {keep} from {groups} of {config.batch}")
    programs = _programs(loss_fn, build_optimizer(config.optimizer, optax.constant_schedule(1.0), 1))
    longest = -(-max(len(example.input_ids) for example in data.validation) // 8) * 8
    outcomes: list[Outcome] = []
    left_out = done = 0
    rows: list = []
    for number in range(batches):
        candidates = sampler(plan.after + number)
        rows = validation_rows(data.validation, config.validation.per_step, config.seed, plan.after + number)
        validation = language_rows(collate(rows, longest, data.pool.pad_id))
        batch = programs.expand(state.params, state.opt_state, frozen, language_rows(candidates.batch), validation)
        before = float(batch.before)
        if not math.isfinite(before):
            raise RunError(f"the validation loss is {before} after {plan.after} updates: lower optimizer.learning_rate")
        usable = np.flatnonzero(batch.usable)
        left_out += config.batch - len(usable)
        for chosen, subset in enumerate(draw_subsets(usable, keep, per_batch, (config.seed, _SUBSETS, number))):
            weights = np.zeros(config.batch, np.float32)
            weights[list(subset)] = 1 / keep
            main = plan.factors.index(1.0)
            swept = range(len(plan.factors)) if chosen < max(_FEWEST, per_batch * _SWEPT) else [main]
            outcomes += _try(
                programs, state, frozen, batch, validation, weights, [rate * plan.factors[i] for i in swept],
                Outcome(number, chosen, tuple(candidates.ids[i] for i in subset), "", 0.0, before, 0.0, {}),
            )  # fmt: skip
            done += 1
            progress(done, per_batch * batches)
    if not outcomes:
        raise RunError(
            f"of {batches} batches none has more than {keep} candidates with labels and a finite gradient: "
            "lower keep, or look at the data"
        )
    dtype = jnp.dtype(config.model.compute_dtype or config.model.dtype)
    resolution = float(jnp.finfo(dtype).eps) * float(np.mean([outcome.before for outcome in outcomes]))
    return TaylorResult(tuple(outcomes), config, plan, rate, keep, len(rows), left_out, resolution)


def draw_subsets(usable: Sequence[int] | np.ndarray, keep: int, count: int, seed: Sequence[int]) -> list[tuple]:
    """Distinct subsets of `keep` of the usable candidates, in random order.

    Returns:
        At most `count`; all there are when they are fewer, none when there is nothing to choose.
    """
    usable = [int(index) for index in usable]
    if len(usable) <= keep:
        return []
    rng = np.random.default_rng(tuple(seed))
    if math.comb(len(usable), keep) <= 10 * count:
        every = list(itertools.combinations(usable, keep))
        return [every[i] for i in rng.permutation(len(every))[:count]]
    found: dict[tuple, None] = {}  # a set that remembers the order of drawing
    while len(found) < count:
        found[tuple(sorted(rng.choice(usable, keep, replace=False).tolist()))] = None
    return list(found)


def _spread(plan: TaylorPlan, n: int, keep: int) -> tuple[int, int]:
    """Subsets of a batch, and batches."""
    possible = math.comb(n, keep)
    if possible < _FEWEST:
        raise ConfigError(
            f"a batch of {n} has {possible} subset{'s' * (possible > 1)} of {keep} (keep), too few to compare: "
            "raise batch, or set keep to about half of it"
        )
    batches = min(plan.subsets, max(plan.batches, math.ceil(plan.subsets / possible)))
    return math.ceil(plan.subsets / batches), batches


def _warm_up(
    config: TrainConfig,
    loss_fn: Callable[..., Array],
    params: PyTree,
    frozen: PyTree,
    sampler: CandidateSampler,
    updates: int,
    steps: int,
    has_dropout: bool,
) -> TrainState:
    """The state after some updates on all candidates, as the rule `regular` makes them."""
    optimizer = build_optimizer(config.optimizer, build_schedule(config.optimizer, steps), 1)
    state = TrainState.create(params, optimizer, seed=config.seed, reserve_direction=False)
    weight = label_count if config.update_weighting == "tokens" else None
    step = make_selective_step(
        loss_fn, optimizer, "regular", config.batch, learning_rate=0.0, is_valid=has_labels, row_weight=weight
    )
    key = jax.random.key(config.seed)
    for number in range(updates):
        dropout = jax.random.fold_in(key, number) if has_dropout else None
        state, _ = step(state, frozen, language_rows(sampler(number).batch, dropout), None)
    return state


def _programs(loss_fn: Callable[..., Array], optimizer: optax.GradientTransformation) -> _Programs:
    """Compile the parts, for an optimizer whose learning rate is 1."""
    backward = value_and_per_example_grads(loss_fn)

    def mean_loss(frozen: PyTree, validation: LanguageExample) -> Callable[[PyTree], Array]:
        return lambda params: jax.vmap(loss_fn, in_axes=(None, None, 0))(params, frozen, validation).mean()

    @jax.jit
    def expand(
        params: PyTree, opt_state: PyTree, frozen: PyTree, candidates: LanguageExample, validation: LanguageExample
    ) -> _Batch:
        """Everything that all subsets of a batch share."""
        loss = mean_loss(frozen, validation)
        losses, grads = backward(params, frozen, candidates)
        before, v = jax.value_and_grad(lambda t: loss(with_floating(params, t)))(floating(params))
        geared = precondition(optimizer, opt_state, floating(params), v)
        return _Batch(
            grads,
            jnp.isfinite(losses) & grads.finite() & jax.vmap(has_labels)(candidates),
            before,
            v,
            grads.dot(with_floating(params, v)),
            grads.dot(with_floating(params, geared)),
            grads.gram(),
            curvatures(loss, params, grads),
        )

    @jax.jit
    def directions(params: PyTree, opt_state: PyTree, grads: PerExampleGrads, w: Array) -> tuple[PyTree, PyTree]:
        """Both steps of a subset for the rate 1."""
        gradient = floating(grads.weighted_sum(w))
        return jax.tree.map(jnp.negative, gradient), unit_update(optimizer, opt_state, params, gradient)

    @jax.jit
    def curvature(params: PyTree, frozen: PyTree, validation: LanguageExample, along: PyTree) -> Array:
        return inner(along, hessian_times(mean_loss(frozen, validation), params, along))

    @jax.jit
    def loss_after(params: PyTree, frozen: PyTree, validation: LanguageExample, along: PyTree, rate: Array) -> Array:
        return loss_along(mean_loss(frozen, validation), params, along, rate)

    return _Programs(expand, directions, curvature, loss_after)


def _try(
    programs: _Programs,
    state: TrainState,
    frozen: PyTree,
    batch: _Batch,
    validation: LanguageExample,
    weights: np.ndarray,
    rates: list[float],
    blank: Outcome,
) -> list[Outcome]:
    """Both steps of one subset at some rates, and what was predicted of them."""
    down, update = programs.directions(state.params, state.opt_state, batch.grads, weights)
    slope = float(inner(update, batch.gradient))
    curvature = math.nan
    if len(rates) > 1:  # the dearest part: subsets that are tried at one rate do without
        curvature = float(programs.curvature(state.params, frozen, validation, update))
    found = []
    for rate in rates:
        for kind, direction in ((GRADIENT_DESCENT, down), (OPTIMIZER, update)):
            after = programs.loss_after(state.params, frozen, validation, direction, jnp.float32(rate))
            one = jnp.asarray(weights)[None]
            terms = {
                "first order": predicted(batch.slopes, None, one, rate)[0],
                "Gram matrix": predicted(batch.slopes, batch.gram, one, rate)[0],
                "Hessian": predicted(batch.slopes, batch.curvature, one, rate)[0],
                "preconditioned": predicted(batch.preconditioned, None, one, rate)[0],
                "update": rate * slope,
                "update and Hessian": rate * slope + rate**2 / 2 * curvature,
            }
            predictions = {name: float(terms[name]) for name in PREDICTIONS[kind]}
            change = float(after) - blank.before
            found.append(blank._replace(step=kind, rate=rate, actual=change, predictions=predictions))
    return found
