"""How the signals of a step are computed: one pass or two, all parameters or some, exactly or by projection.

A scorer returns, beside the signals, how to get the update of the kept rows. `make_scorer` chooses the cheapest way to
what a rule needs: nothing, a forward pass (this module), factors that also give the update (`one_pass`), or
contractions inside the backward pass followed by a plain step on the kept rows (`two_pass`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from greats_jax.errors import ArgumentError
from greats_jax.ghost import Spread
from greats_jax.selection import Signals
from greats_jax.training.rows import Valid, no_validation, parts_of, spread_rows, valid_rows
from greats_jax.training.state import TrainState, floating, with_floating
from greats_jax.training.targets import Targets

Array = jax.Array
PyTree = Any
LossFn = Callable[..., Any]

# What needs the gradients of candidates; any other signal needs a forward pass at most.
STEERED = frozenset({"alignment", "preconditioned_alignment", "per_leaf_alignment"})
GRADIENTS = STEERED | {"gram", "squared_norms"}
# What needs the validation rows.
GUIDED = STEERED | {"validation_embeddings"}


def _choice(owner: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ArgumentError(f"{owner}({name}={value!r}): choose {' or '.join(map(repr, allowed))}")


@dataclass(frozen=True)
class Projection:
    """Random features of the gradients in place of their exact products.

    Attributes:
        rank: number of features of an example; the error of an inner product falls with its square root.
        alignment: `exact`: only the Gram matrix and norms are estimated; `projected`: the alignment too, which saves
            the contraction with the validation gradient (needs `validation="merged"`). The one after the optimizer is
            then estimated in one pass, and exact in two.
    """

    rank: int = 1024
    alignment: Literal["exact", "projected"] = "exact"

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if self.rank < 1:
            raise ArgumentError(f"Projection(rank={self.rank}): at least one feature is needed, e.g. 1024")
        _choice("Projection", "alignment", self.alignment, ("exact", "projected"))


@dataclass(frozen=True)
class Scoring:
    """How scores are computed. The default is exact and computes nothing twice.

    Attributes:
        passes: `one`: the factors of all layers are kept until the choice is made, and give the update. `two`: each
            layer is contracted during the backward pass and dropped, and the kept rows are run again: the memory of a
            plain step for the price of one on k rows, for large models and rematerialised ones.
        micro_batches: parts in which candidates are scored, and kept rows run, one after another (needs two passes).
            The alignment stays exact and is taken with the mean validation gradient, computed first. The Gram matrix is
            exact within a part and 0 between parts, or estimated between all with a projection.
        leaves: `leaves(path) -> bool`, parameters that scores are computed from, by key path; None for all. The update
            is that of all parameters.
        projection: estimate products by random features; None for exact ones.
    """

    passes: Literal["one", "two"] = "one"
    micro_batches: int = 1
    leaves: Callable[[str], bool] | None = None
    projection: Projection | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        _choice("Scoring", "passes", self.passes, ("one", "two"))
        if self.micro_batches < 1:
            raise ArgumentError(f"Scoring(micro_batches={self.micro_batches}): at least one part is needed")
        if self.micro_batches > 1 and self.passes == "one":
            raise ArgumentError(
                f"Scoring(micro_batches={self.micro_batches}) drops each part's factors before the choice is made, "
                "so the kept rows are run again: set passes='two'"
            )
        if self.micro_batches > 1 and self.projects_alignment:
            raise ArgumentError(
                "micro-batches are aligned with the validation gradient exactly: use Projection(alignment='exact')"
            )

    @property
    def projects_alignment(self) -> bool:
        """Whether alignments are estimated."""
        return self.projection is not None and self.projection.alignment == "projected"


EXACT = Scoring()


class Update(NamedTuple):
    """What the kept rows give.

    Attributes:
        loss: f32[], their weighted mean loss.
        grads: weighted mean gradient, like the parameters.
        norm: f32[], Euclidean norm of it.
        used: bool[k], kept rows that took part; one whose loss or gradient turned out not finite did not.
        aux: auxiliary outputs of the kept rows, if they were run again.
    """

    loss: Array
    grads: PyTree
    norm: Array
    used: Array
    aux: Any = None


Kept = Callable[[Array, Array], Update]


class Scored(NamedTuple):
    """Signals of the candidates and what else the step needs.

    Attributes:
        signals: for the rule.
        kept: `kept(indices, shares) -> Update`, from i32[k] and f32[k], shares that sum to 1.
        direction: the validation direction to carry in the state.
        validation_loss: f32[], NaN if not computed.
        validation_ok: bool[], False when scoring had no validation row to go by.
        n_validation: i32[], rows used.
        n_validation_rejected: i32[], rows dropped.
        aux: auxiliary outputs for all candidates, when scoring produced them.
        kept_by_leaf: `kept_by_leaf(shares) -> gradient`, from a pytree like the floating parameters of shares f32[n]
            (f32[layers, n]); None where the way of scoring cannot.
    """

    signals: Signals
    kept: Kept
    direction: PyTree
    validation_loss: Array
    validation_ok: Array
    n_validation: Array
    n_validation_rejected: Array
    aux: Any = None
    kept_by_leaf: Callable[[PyTree], PyTree] | None = None


Scorer = Callable[[TrainState, PyTree, PyTree, PyTree], Scored]


class ScoringTask(NamedTuple):
    """What a scorer is made for.

    Attributes:
        loss_fn: loss of one example (or a `SplitLoss`).
        needs: signals that the rule needs.
        has_aux: whether the loss returns auxiliary outputs.
        validation: `merged` or `cached`.
        refresh_every: R of the cached mode.
        is_valid: test of a row, or None.
        scoring: how to compute the signals.
        targets: the target tasks of the validation rows; None for one.
        precondition: `precondition(state, direction) -> direction`, what the optimizer makes of a gradient.
        spread: how rows are spread over a mesh; None for one device.
        groups: the Gram matrix is that of pairs within each of so many runs of candidates.
    """

    loss_fn: LossFn
    needs: frozenset[str]
    has_aux: bool
    validation: str
    refresh_every: int
    is_valid: Valid | None
    scoring: Scoring
    targets: Targets | None
    precondition: Callable[[TrainState, PyTree], PyTree]
    spread: Spread | None = None
    groups: int = 1


def keeps_direction(needs: frozenset[str], validation: str, scoring: Scoring) -> bool:
    """Whether a step keeps a validation gradient in its state: one copy of the floating parameters.

    One that is cached, and one that has to be there before candidates are contracted layer by layer.
    """
    steered = needs & STEERED
    early = scoring.passes == "two" and (scoring.micro_batches > 1 or steered != {"alignment"})
    return bool(steered) and (validation == "cached" or early)


def forward_scorer(task: ScoringTask) -> Scorer:
    """Scorer of rules that look at no gradient: a forward pass if they need one, and a plain step on kept rows."""

    def score(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> Scored:
        losses = aux = None
        if task.needs & {"losses", "logit_summaries"}:
            values = batched(task.loss_fn, state.params, frozen, spread_rows(candidates, task.spread))
            losses, aux = values if task.has_aux else (values, None)
        signals = Signals(losses=losses, valid=valid_rows(task.is_valid, candidates))
        kept = kept_by_rows(task, state.params, frozen, candidates)
        return Scored(signals, kept, state.direction, *no_validation(), aux=aux)

    return score


def kept_by_rows(task: ScoringTask, params: PyTree, frozen: PyTree, candidates: PyTree) -> Kept:
    """Loss and gradient of the kept rows by an ordinary forward and backward pass, in `micro_batches` parts.

    Which rows have a gradient that is finite shows only now: see `mended`.
    """
    part = _part_of(task, params, frozen, candidates)

    def in_parts(indices: Array, shares: Array) -> tuple[Array, PyTree, Any]:
        count = min(task.scoring.micro_batches, indices.size)
        if count == 1:
            (loss, aux), grads = part(indices, shares)
            return loss, grads, aux
        missing = -indices.size % count
        indices = jnp.concatenate([indices, jnp.full(missing, indices[0])]).reshape(count, -1)
        shares = jnp.pad(shares, (0, missing)).reshape(count, -1)

        def add(total: tuple[Array, PyTree], slots: tuple[Array, Array]) -> tuple[tuple[Array, PyTree], None]:
            (loss, _), grads = part(*slots)
            return jax.tree.map(jnp.add, total, (loss, grads)), None

        (loss, grads), _ = lax.scan(add, (jnp.zeros_like(shares.sum()), _no_gradient(params)), (indices, shares))
        return loss, grads, None

    def kept(indices: Array, shares: Array) -> Update:
        # An empty slot repeats the first pick: its share is 0, but a non-finite row would still spoil the gradient.
        indices = jnp.where(shares > 0, indices, indices[jnp.argmax(shares > 0)])
        loss, grads, aux = in_parts(indices, shares)
        first = Update(loss, grads, optax.tree.norm(grads), shares > 0)
        return mended(first, task, params, frozen, candidates, indices, shares)._replace(aux=aux)

    return kept


def mended(
    update: Update, task: ScoringTask, params: PyTree, frozen: PyTree, candidates: PyTree, indices: Array, shares: Array
) -> Update:
    """The update, or if it is not finite that of those kept rows alone whose loss and gradient are finite.

    Costs nothing when there is nothing to mend, else a forward and backward pass of one row k times, in a step that
    would be lost without it.
    """
    part = _part_of(task, params, frozen, candidates)

    def one_by_one(shares: Array) -> Update:
        def add(total: tuple[Array, PyTree, Array], slot: tuple[Array, Array]) -> tuple[tuple, Array]:
            index, share = slot
            (loss, _), grads = part(index[None], jnp.ones(1))
            good = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads)) & (share > 0)
            weighed = jax.tree.map(lambda x: jnp.where(good, share * x, 0).astype(x.dtype), (loss, grads))
            sums = jax.tree.map(jnp.add, total, (*weighed, jnp.where(good, share, 0.0)))
            return sums, good

        start = (jnp.zeros_like(update.loss), _no_gradient(params), jnp.zeros(()))
        (loss, grads, share), used = lax.scan(add, start, (indices, shares))
        rest = jnp.where(share > 0, share, 1.0)
        grads = jax.tree.map(lambda g: (g / rest).astype(g.dtype), grads)
        return Update(loss / rest, grads, optax.tree.norm(grads), used)

    def spoilt(carry: tuple[Update, Array]) -> Array:
        found, tried = carry
        return ~tried & ~(jnp.isfinite(found.loss) & jnp.isfinite(found.norm))

    def mend(carry: tuple[Update, Array]) -> tuple[Update, Array]:
        # What does not depend on the carry is hoisted out of a loop by the compiler and then runs in every step: seen
        # as a plain step of twice the time.
        return one_by_one(jnp.where(carry[1], 0.0, shares)), jnp.asarray(True)

    # A loop of no or one turn: unlike a conditional's, its carry is not copied when there is nothing to do.
    found, _ = lax.while_loop(spoilt, mend, (update, jnp.asarray(False)))
    return found


def _part_of(
    task: ScoringTask, params: PyTree, frozen: PyTree, candidates: PyTree
) -> Callable[[Array, Array], tuple[tuple[Array, Any], PyTree]]:
    """`part(indices, shares) -> ((weighted mean loss, aux), gradient)` of some rows, by an ordinary backward pass."""

    def part(indices: Array, shares: Array) -> tuple[tuple[Array, Any], PyTree]:
        k = indices.size
        if missing := -k % parts_of(task.spread):
            indices = jnp.concatenate([indices, jnp.broadcast_to(indices[:1], (missing,))])
            shares = jnp.pad(shares, (0, missing))
        # On a mesh the kept rows, which may all come from one device, are dealt to all of them.
        rows = spread_rows(jax.tree.map(lambda x: jnp.take(x, indices, axis=0), candidates), task.spread)

        def mean(trained: PyTree) -> tuple[Array, Any]:
            values = batched(task.loss_fn, with_floating(params, trained), frozen, rows)
            values, aux = values if task.has_aux else (values, None)
            return jnp.sum(jnp.where(shares > 0, shares * values, 0.0)), jax.tree.map(lambda x: x[:k], aux)

        return jax.value_and_grad(mean, has_aux=True)(floating(params))

    return part


def _no_gradient(params: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, floating(params))


# ---- shared by all scorers -------------------------------------------------------------------------------------------


def batched(loss_fn: LossFn, params: PyTree, frozen: PyTree, rows: PyTree) -> Any:
    """The loss of every row."""
    return jax.vmap(loss_fn, in_axes=(None, None, 0))(params, frozen, rows)


def projection_key(state: TrainState) -> Array:
    """The key of this step's random features, apart from the one that the rule draws with."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)
