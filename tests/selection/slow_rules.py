"""The rules once more, slow and obvious, in NumPy with float64: what the fast ones are compared with."""

import itertools
from collections.abc import Sequence

import numpy as np

from greats_jax.selection import Signals


def allowed_in(signals: Signals) -> list[int]:
    """Candidates with labels and a finite loss."""
    return [i for i, ok in enumerate(np.asarray(signals.valid)) if ok and np.isfinite(np.asarray(signals.losses)[i])]


def slow_greedy(scores, overlap, k: int, left: Sequence[int], groups=None, limits=0) -> list[int]:
    """Algorithm 1 of GREATS, one pick at a time, with at most `limits[group]` picks of a group."""
    now, left, picks = np.array(scores, np.float64), list(left), []
    while len(picks) < k:
        open_ = left if groups is None else [i for i in left if sum(groups[j] == groups[i] for j in picks) < limits]
        if not open_:
            break
        best = max(open_, key=lambda i: (now[i], -i))
        picks.append(best)
        left.remove(best)
        if overlap is not None:
            for i in left:
                now[i] -= overlap[best, i]
    return picks


def slow_scores(name: str, signals: Signals) -> np.ndarray:
    """What a rule without memory ranks by: one number per candidate."""
    s = {
        field: np.asarray(value, np.float64)
        for field, value in signals._asdict().items()
        if value is not None and field not in ("per_leaf_alignment", "logit_summaries", "memory")
    }
    n = len(s["valid"])
    match name:
        case "regular":
            return -np.arange(n)
        case "max_loss":
            return s["losses"]
        case "grad_norm":
            return np.array([x**0.5 for x in s["squared_norms"]])
        case "greats_first_order" | "greats":
            return s["alignment"]
        case "greats_adam" | "opus":
            return s["preconditioned_alignment"]
        case "cosine":
            return np.array([a / q**0.5 if q else 0.0 for a, q in zip(s["alignment"], s["squared_norms"], strict=True)])
        case "rho_loss":
            return np.array([s["losses"][i] - s["reference_losses"][i] for i in range(n)])
        case "sbert":
            rows, targets = s["embeddings"], s["validation_embeddings"]
            every = [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in targets] for x in rows]
            return np.array([sum(row) / len(row) for row in every])
    raise AssertionError(name)


def slow_picks(name: str, signals: Signals, k: int, rate: float) -> list[int]:
    """Picks of a rule that ranks by scores."""
    overlap = rate * np.asarray(signals.gram, np.float64) if name == "greats" else None
    return slow_greedy(slow_scores(name, signals), overlap, k, allowed_in(signals))


def slow_layer_wise(signals: Signals, k: int) -> list[list[int]]:
    """Picks parameter by parameter and layer by layer."""
    rows = [row for leaf in signals.per_leaf_alignment.values() for row in np.atleast_2d(np.asarray(leaf))]
    return [slow_greedy(row, None, k, allowed_in(signals)) for row in rows]


class SlowQueue:
    """UDS with a Python list for its memory."""

    def __init__(self, size: int, alpha: float = 1.0):
        self.rows, self.size, self.alpha = [], size, alpha

    def scores(self, signals: Signals) -> np.ndarray:
        summaries = {name: np.asarray(x, np.float64) for name, x in signals.logit_summaries.items()}
        far = [
            sum(np.linalg.norm(z - row) for row in self.rows) / len(self.rows) if self.rows else 0.0
            for z in summaries["projection"]
        ]
        return summaries["nuclear"] + self.alpha * np.array(far)

    def push(self, signals: Signals, picks: Sequence[int]) -> None:
        for i in picks:
            self.rows.append(np.asarray(signals.logit_summaries["projection"], np.float64)[i])
        self.rows = self.rows[-self.size :]


def best_weights(target: np.ndarray, gram: np.ndarray, picks: Sequence[int]) -> np.ndarray:
    """The maximiser of `w.a - w.K.w / 2` over `w >= 0` that is 0 off the picks: every support is tried."""
    best, value = np.zeros(len(target)), 0.0
    for size in range(1, len(picks) + 1):
        for support in itertools.combinations(picks, size):
            weights = np.zeros(len(target))
            weights[list(support)] = np.linalg.solve(gram[np.ix_(support, support)], target[list(support)])
            reached = objective(target, gram, weights)
            if (weights >= 0).all() and reached > value:
                best, value = weights, reached
    return best


def objective(target: np.ndarray, gram: np.ndarray, weights: np.ndarray) -> float:
    """What PartitionSel maximises, with eta 1."""
    return float(weights @ target - weights @ gram @ weights / 2)


def slow_pursuit(signals: Signals, k: int, budgets: Sequence[int] | None = None) -> tuple[list[int], list[np.ndarray]]:
    """Orthogonal matching pursuit: the picks in their order, and the weights after each."""
    target, gram = np.asarray(signals.alignment, np.float64), np.asarray(signals.gram, np.float64)
    sources = np.asarray(signals.sources)
    picks, history, weights = [], [], np.zeros(len(target))

    def room(i: int) -> bool:
        if budgets is None:
            return True
        limit = budgets[sources[i]] if sources[i] < len(budgets) else 0
        return sum(sources[j] == sources[i] for j in picks) < limit

    for _ in range(k):
        gains = (target - gram @ weights) / np.sqrt(np.diagonal(gram))
        # Weights of picks are optimal to rounding, so a gain of rounding size is none.
        left = [i for i in allowed_in(signals) if i not in picks and room(i) and gains[i] > 1e-4]
        if not left:
            break
        picks.append(max(left, key=lambda i: (gains[i], -i)))
        weights = best_weights(target, gram, picks)
        history.append(weights)
    return picks, history
