"""A small network with a scanned layer, rows that carry what every rule needs, and gradients written out."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from greats_jax.selection import Selection, Signals, get
from greats_jax.training import Scoring, StepMetrics, TrainState, make_selective_step
from greats_jax.training.state import floating

RATE, B1, B2, EPS = 0.02, 0.9, 0.99, 1e-8
N, M, KEEP = 8, 3, 3
OPTIMIZER = optax.adamw(RATE, b1=B1, b2=B2, eps=EPS, weight_decay=0.01)
UDS = "uds(size=5, width=4)"
RULES = (
    "regular", "random_k", "max_loss", "grad_norm", "greats", "greats_first_order", "greats_adam", "cosine", "opus",
    "layer_wise", "partition_sel", "rho_loss", "sbert", UDS,
)  # fmt: skip
NAN = float("nan")


def normal(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMS = {
    "first": normal(0, 4, 6),
    "layers": normal(1, 2, 6, 6, scale=0.5),
    "head": normal(2, 6, 3),
    "count": jnp.arange(2),
}
FROZEN = {"reference": jax.tree.map(lambda x: x + 0.1, floating(PARAMS))}


def outputs(params, example):
    h, _ = jax.lax.scan(lambda h, w: (h + jnp.tanh(h @ w), None), example["x"] @ params["first"], params["layers"])
    return h @ params["head"]


def loss_fn(params, frozen, example):
    """Squared error. A row whose `trap` is 0 has a finite loss and a gradient of NaN."""
    found = outputs(params, example)
    return jnp.mean((found - example["y"]) ** 2) + 0.1 * jnp.sqrt(example["trap"] * jnp.mean(found**2))


def summarised(params, frozen, example):
    found = outputs(params, example)
    summaries = {"nuclear": jnp.abs(found).sum(), "projection": found.ravel()[:4]}
    return loss_fn(params, frozen, example), jax.lax.stop_gradient(summaries)


def rows(seed: int, count: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    fields = {
        "x": rng.normal(size=(count, 5, 4)),
        "y": rng.normal(size=(count, 5, 3)) * rng.uniform(0.5, 2, (count, 1, 1)),
        "trap": np.ones(count),
        "weight": rng.uniform(0.5, 2, count),
        "embedding": rng.normal(size=(count, 3)),
    }
    whole = {"source": rng.integers(0, 2, count), "task": np.arange(count) % 3}
    return {
        **{k: jnp.asarray(v, jnp.float32) for k, v in fields.items()},
        **{k: jnp.asarray(v, jnp.int32) for k, v in whole.items()},
    }


def _with(batch: dict[str, jax.Array], name: str, which: tuple[int, ...], value: float) -> dict[str, jax.Array]:
    changed = np.array(batch[name])
    changed[list(which)] = value
    return {**batch, name: jnp.asarray(changed)}


def spoil_losses(batch: dict[str, jax.Array], *which: int) -> dict[str, jax.Array]:
    return _with(batch, "y", which, NAN)


def spoil_gradients(batch: dict[str, jax.Array], *which: int) -> dict[str, jax.Array]:
    return _with(batch, "trap", which, 0.0)


ROW_SIGNALS = {
    "reference_losses": lambda frozen, row: loss_fn(frozen["reference"], frozen, row),
    "embeddings": lambda frozen, row: row["embedding"],
    "sources": lambda frozen, row: row["source"],
}
MODES: dict[str, dict[str, Any]] = {
    "merged": {},
    "cached": {"validation": "cached"},
    "two passes": {"scoring": Scoring("two")},
    "two passes, cached": {"validation": "cached", "scoring": Scoring("two")},
    "micro-batches": {"scoring": Scoring("two", 2)},
}


@functools.cache
def step_of(rule: str, mode: str = "merged", keep: int | float = KEEP) -> Any:
    """The compiled step, one for all tests."""
    aux = "uds" in rule
    needs = frozenset() if rule == "target_only" else get(rule).needs
    wanted = {"embeddings"} if "validation_embeddings" in needs else needs & set(ROW_SIGNALS)
    signals = {name: ROW_SIGNALS[name] for name in ROW_SIGNALS if name in wanted}
    loss = summarised if aux else loss_fn
    return make_selective_step(
        loss, OPTIMIZER, rule, keep, learning_rate=RATE, has_aux=aux, row_signals=signals, **MODES[mode]
    )


def new_state(rule: str = "regular") -> TrainState:
    init = None if rule == "target_only" else get(rule).init
    return TrainState.create(PARAMS, OPTIMIZER, memory=None if init is None else init())


def run(rule: str, candidates: Any, mode: str = "merged", keep: int | float = KEEP) -> tuple[TrainState, StepMetrics]:
    """One step from the start."""
    return step_of(rule, mode, keep)(new_state(rule), FROZEN, candidates, VALIDATION)


CANDIDATES, VALIDATION = rows(3, N), rows(4, M)


# ---- written out -----------------------------------------------------------------------------------------------------


@jax.jit
def _forward(params: Any, batch: Any) -> Any:
    """Losses of the reference, and summaries of the outputs."""
    (_, summaries), theirs = (
        jax.vmap(f, (None, None, 0))(p, FROZEN, batch)
        for f, p in ((summarised, params), (loss_fn, FROZEN["reference"]))
    )
    return theirs, summaries


@jax.jit
def gradients(params: Any, batch: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Losses, and the gradient of every row laid out."""
    trained = {k: v for k, v in params.items() if k != "count"}
    return jax.vmap(lambda row: jax.value_and_grad(loss_fn)(trained, FROZEN, row))(batch)


def flat(grads: dict[str, Any]) -> np.ndarray:
    """[n, P]"""
    return np.concatenate([np.asarray(g, np.float64).reshape(len(g), -1) for _, g in sorted(grads.items())], 1)


def response(state: Any, direction: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`eta P_t v` of AdamW by its formula, from nu; where it has no history, its answer to the direction itself."""
    moments = state.opt_state[0]
    t = int(moments.count) + 1
    found = {}
    for name, v in direction.items():
        nu = np.asarray(moments.nu[name], np.float64)
        share = RATE * (1 - B1) / (1 - B1**t) * v
        slope = share / (np.sqrt(B2 * nu / (1 - B2**t)) + EPS)
        answer = share / (np.sqrt((B2 * nu + (1 - B2) * v**2) / (1 - B2**t)) + EPS)
        found[name] = np.where(np.abs(slope) <= 10 * np.abs(answer), slope, answer)
    return found


def laid_out(state: Any, candidates: Any, validation: Any) -> Any:
    """Every signal there is, as `Signals`."""
    losses, grads = gradients(state.params, candidates)
    _, theirs = gradients(state.params, validation)
    table = flat(grads)
    direction = {k: np.asarray(g, np.float64).mean(0) for k, g in theirs.items()}
    by_leaf = {k: np.asarray(g, np.float64) * direction[k] for k, g in grads.items()}
    aligned = {
        k: x.reshape(N, 2, -1).sum(-1).T if k == "layers" else x.reshape(N, -1).sum(-1) for k, x in by_leaf.items()
    }
    responded = flat({k: v[None] for k, v in response(state, direction).items()})[0]
    gram = table @ table.T
    reference_losses, summaries = _forward(state.params, candidates)
    signals = {
        "losses": np.asarray(losses),
        "alignment": table @ flat(theirs).mean(0),
        "gram": gram,
        "squared_norms": np.diagonal(gram),
        "per_leaf_alignment": {**aligned, "count": None},
        "reference_losses": reference_losses,
        "embeddings": candidates["embedding"],
        "validation_embeddings": validation["embedding"],
        "logit_summaries": summaries,
        "sources": candidates["source"],
        "valid": np.ones(N, bool),
        "preconditioned_alignment": table @ responded,
    }
    return jax.tree.map(
        lambda x: np.asarray(x, np.float32) if np.asarray(x).dtype.kind == "f" else x, Signals(**signals)
    )


@functools.cache
def _compiled(rule: str, keep: int) -> Any:
    return jax.jit(lambda signals, key: get(rule)(signals, keep, learning_rate=RATE, key=key))


def selected_by_hand(rule: str, state: Any, signals: Signals, keep: int = KEEP) -> Any:
    """What the rule makes of these signals."""
    key = jax.random.fold_in(state.key, state.step)
    return _compiled(rule, keep)(signals._replace(memory=state.memory), key)


def dense(selection: Selection, row_weight: Any = 1.0) -> np.ndarray:
    """Shares f32[n] (f32[layers, n]) of a selection, in sum 1."""
    indices, weights = (np.atleast_2d(x) for x in selection[:2])
    shares = np.zeros((len(indices), N))
    for layer, (i, w) in enumerate(zip(indices, weights, strict=True)):
        np.add.at(shares[layer], i, w)
    shares = shares * row_weight
    shares /= shares.sum(1, keepdims=True)
    return shares if np.ndim(selection.indices) == 2 else shares[0]


@jax.jit
def _apply(state: TrainState, grads: Any) -> Any:
    trained = floating(state.params)
    updates, _ = OPTIMIZER.update(grads, state.opt_state, trained)
    return optax.apply_updates(trained, updates)


def updated_by_hand(state: Any, batch: Any, shares: dict[str, np.ndarray] | np.ndarray) -> dict[str, Any]:
    """Parameters after the optimizer took the mean gradient of the rows, with these shares (of each parameter)."""
    _, grads = gradients(state.params, batch)
    mean = {}
    for name, g in grads.items():
        share = shares[name] if isinstance(shares, dict) else shares
        letters = "ln,nlpq->lpq" if np.ndim(share) == 2 else "n,n...->..."
        mean[name] = jnp.asarray(np.einsum(letters, share, np.asarray(g, np.float64)), jnp.float32)
    return {k: v for k, v in _apply(state, {**mean, "count": None}).items() if v is not None}


def snapshot(state: TrainState) -> TrainState:
    """A copy that outlives the step, which donates its state."""
    return jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.array(x),
        state._replace(key=jax.random.clone(state.key)),
    )
