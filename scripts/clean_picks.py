"""Which rules learn from right labels? The share of clean picks under every rule, where half of the labels are wrong.

    python scripts/clean_picks.py --seeds 5 --json clean_picks.json

Images, model and setting are those of examples/noisy_labels_cnn.py. Within a seed all rules see the same batches and
start from the same weights, so that their differences are paired. Printed for every rule: the share of the updates
that came from rightly labelled images (over all updates, in the first and in the last quarter of them), the accuracy on
new images, and the differences of both to random_k; means over seeds and half-widths of 95 % t-intervals.

`target_only` learns from the validation images alone. The reference of `rho_loss` is the same network, trained on the
validation images beforehand with as many updates. `uds` reads the nuclear norm and a projection of logits, which for
one row of logits are its length and, up to signs, the row itself. `sbert` needs texts and is left out.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from scipy import stats

from greats_jax.errors import GreatsError
from greats_jax.training import TrainState, make_selective_step
from greats_jax.training.logit_summaries import summarise

RULES = (
    "target_only", "random_k", "regular",
    "greats", "greats_first_order", "cosine", "greats_adam", "opus", "layer_wise", "partition_sel",
    "soft(greats)", "0.5*normalised(greats) + 0.5*normalised(max_loss)",
    "grad_norm", "max_loss", "-max_loss", "rho_loss", "uds",
)  # fmt: skip
CONTROL = "random_k"
SHARE, ACCURACY = "clean share", "test accuracy"
COLUMNS = {  # what is measured: its heading
    SHARE: SHARE,
    f"{SHARE} less {CONTROL}": f"less {CONTROL}",
    "first quarter": "first quarter",
    "last quarter": "last quarter",
    ACCURACY: ACCURACY,
    f"{ACCURACY} less {CONTROL}": f"less {CONTROL}",
}

Result = dict[str, float]
Run = Callable[[int, int], tuple[Result, Any]]


def load_example() -> ModuleType:
    """The example as a module."""
    path = Path(__file__).resolve().parent.parent / "examples" / "noisy_labels_cnn.py"
    spec = importlib.util.spec_from_file_location("noisy_labels_cnn", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_run(example: ModuleType, rule: str, reference: Callable[[int], Any]) -> Run:
    """Builds `run(seed, updates) -> (result, params)` for a rule, compiled once for all seeds.

    Args:
        example: the module.
        rule: a name or an expression.
        reference: `reference(seed) -> params` of the reference model; called when the rule needs one.
    """
    graphdef, _ = nnx.split(example.CNN(nnx.Rngs(0)))
    has_aux = "uds" in rule

    def loss_fn(params: Any, frozen: Any, row: Any) -> Any:
        image, label = row
        logits = example.logits_of(graphdef, params, image)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        return (loss, summarise(logits[None], jnp.ones(1, bool))) if has_aux else loss

    signals = {
        "reference_losses": lambda frozen, row: loss_fn(frozen, {}, row),
        "sources": lambda frozen, row: jnp.zeros((), jnp.int32),
    }
    keep = 1.0 if rule == "regular" else example.KEEP
    optimizer = optax.adam(example.RATE)
    step = make_selective_step(
        loss_fn, optimizer, rule, keep, learning_rate=example.RATE, row_signals=signals, has_aux=has_aux
    )

    def run(seed: int, updates: int) -> tuple[Result, Any]:
        rng = np.random.default_rng(seed)
        (images, labels), wrong, validation, test = example.make_task(rng)
        _, params = nnx.split(example.CNN(nnx.Rngs(seed)))
        state = TrainState.create(params, optimizer, seed)
        frozen = reference(seed) if "rho_loss" in rule else {}
        clean, shares = [], []
        for _ in range(updates):
            rows = rng.choice(example.POOL, example.BATCH, replace=False)
            state, metrics = step(state, frozen, (images[rows], labels[rows]), validation)
            clean.append(np.ones(example.VALIDATION) if rule == "target_only" else ~wrong[rows])
            shares.append(metrics.shares)
        learnt, right = np.asarray(jnp.stack(shares)), np.stack(clean)
        quarter = max(1, updates // 4)
        parts = {SHARE: slice(None), "first quarter": slice(quarter), "last quarter": slice(-quarter, None)}
        # An update that was skipped has no shares: it drops out of the numerator and of the denominator.
        result = {name: float((learnt * right)[part].sum() / learnt[part].sum()) for name, part in parts.items()}
        return result | {ACCURACY: example.accuracy(graphdef, state.params, *test)}, state.params

    return run


def measure(rules: Sequence[str], seeds: int, updates: int) -> dict[str, list[Result]]:
    """Results of every rule for every seed; prints a line per rule as soon as it is known."""
    example = load_example()
    references: dict[int, Any] = {}

    def reference(seed: int) -> Any:
        return references[seed]

    def learn_references() -> None:
        target_only = make_run(example, "target_only", reference)
        references.update({seed: target_only(seed, updates)[1] for seed in range(seeds)})

    results: dict[str, list[Result]] = {}
    print(f"{'rule':50}" + "".join(f"{name:>17}" for name in COLUMNS.values()))
    for rule in dict.fromkeys((CONTROL, *rules)):
        if "rho_loss" in rule and not references:
            learn_references()
        run = make_run(example, rule, reference)
        found = [run(seed, updates)[0] for seed in range(seeds)]
        for seed, result in enumerate(found):
            control = results.get(CONTROL, found)[seed]  # measured first: until then it is the one just found
            result |= {f"{name} less {CONTROL}": result[name] - control[name] for name in (SHARE, ACCURACY)}
        results[rule] = found
        cells = [interval([100 * result[name] for result in found]) for name in COLUMNS]
        print(f"{rule:50}" + "".join(f"{mean:10.1f} ± {half:4.1f}" for mean, half in cells), flush=True)
    return results


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % t-interval, NaN for one value."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), float("nan")
    return float(np.mean(values)), float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def main(argv: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Share of clean picks under every rule, half of the labels wrong.")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds")
    parser.add_argument("--updates", type=int, default=300, help="updates of each run")
    parser.add_argument("--rules", default="; ".join(RULES), help="names or expressions with ; between them")
    parser.add_argument("--json", type=Path, help="file for the numbers of every seed")
    args = parser.parse_args(argv)
    for name in ("seeds", "updates"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: give at least 1")
    rules = [rule.strip() for rule in args.rules.split(";") if rule.strip()]
    try:
        results = measure(rules, args.seeds, args.updates)
    except GreatsError as error:
        sys.exit(f"error: {error}")
    print(f"{args.seeds} seeds, {args.updates} updates; percent, mean ± 95 % interval; jax {jax.__version__}")
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
