"""How faithful is cheaper scoring on your model and data? Ranks by each way to score, against exact ranks.

    python scripts/compare_scores.py configs/quickstart.yaml lora=null batch=32 --batches 4

Batches of candidates are drawn as in training and scored by first-order GREATS at the initial weights, which are not
changed. Printed for every way: Spearman's correlation with the exact scores, and the share of the exactly best half
that it chooses too; means over batches.
"""

import argparse
import functools
import sys

import jax
import numpy as np
import optax

from greats_jax.analysis import spearman
from greats_jax.data import CandidateSampler, collate
from greats_jax.errors import GreatsError
from greats_jax.models import combine, cut_layers, partition
from greats_jax.training import (
    Projection,
    Scoring,
    TrainState,
    has_labels,
    language_model_loss,
    language_rows,
    load_config,
    make_selective_step,
    split_language_model_loss,
)
from greats_jax.training.draws import validation_rows
from greats_jax.training.resolving import resolve
from greats_jax.training.setup import load_data, load_initial, tokenizer_of


def ways(layers: int) -> dict[str, tuple[int | None, Scoring]]:
    """Ways to score: how many upper layers (None for all), and the options of the step."""
    half, quarter = max(1, layers // 2), max(1, layers // 4)
    return {
        "exact": (None, Scoring()),
        "without the token table": (None, Scoring(leaves=lambda path: "embed" not in path)),
        f"upper {half} layers and head": (half, Scoring()),
        f"upper {half} layers": (half, Scoring(leaves=lambda path: "layers" in path)),
        f"upper {quarter} layers and head": (quarter, Scoring()),
        **{f"projected to {r}": (None, Scoring(projection=Projection(r, "projected"))) for r in (256, 1024, 4096)},
        f"upper {half}, projected to 1024": (half, Scoring(projection=Projection(1024, "projected"))),
    }


def main(argv: list[str]) -> None:
    """Score the batches in every way and print the table."""
    parser = argparse.ArgumentParser(description="Compare cheaper ways to score with exact scores.")
    parser.add_argument("config", help="a YAML configuration of greats train")
    parser.add_argument("overrides", nargs="*", help="key=value, as for greats train")
    parser.add_argument("--batches", type=int, default=4, help="batches of candidates to score")
    args = parser.parse_args(argv)
    try:
        config = resolve(load_config(args.config, args.overrides))
        data = load_data(config, tokenizer_of(config.model))
        model = load_initial(config)
    except GreatsError as error:
        sys.exit(f"error: {error}")
    graphdef, params, frozen = partition(model)
    longest = max(len(example.input_ids) for example in data.validation)
    sampler = CandidateSampler(data.pool, config.batch, config.seed, buckets=1, min_length=longest)
    batches = []
    for number in range(args.batches):
        candidates = sampler(number).batch
        rows = validation_rows(data.validation, config.validation.per_step, config.seed, number)
        targets = collate(rows, candidates.input_ids.shape[1], data.pool.pad_id)
        batches.append((language_rows(candidates), language_rows(targets)))
    optimizer = optax.sgd(0.0)  # the weights stay what they are
    state = TrainState.create(params, optimizer, reserve_direction=False)
    keep = max(1, config.batch // 2)
    scores: dict[str, list[np.ndarray]] = {}
    for name, (upper, scoring) in ways(model.config.layers).items():
        loss = language_model_loss(graphdef, combine)
        if upper is not None:
            at = model.config.layers - upper
            cut = functools.partial(cut_layers, at=at, tied=model.config.tied)
            loss = split_language_model_loss(graphdef, combine, cut, at)
        step = make_selective_step(
            loss, optimizer, "greats_first_order", keep, learning_rate=0.0, is_valid=has_labels, scoring=scoring
        )
        found = []
        try:
            for candidates, targets in batches:
                state, metrics = step(state, frozen, candidates, targets)
                found.append(np.asarray(metrics.scores))
        except GreatsError as error:
            print(f"{name:36} not possible here: {error}")
            state = TrainState.create(params, optimizer, reserve_direction=False)
            continue
        scores[name] = found
        exact = scores["exact"]
        correlation = np.mean([spearman(a, b) for a, b in zip(exact, found, strict=True)])
        both = [
            len(set(np.argsort(-a)[:keep]) & set(np.argsort(-b)[:keep])) / keep
            for a, b in zip(exact, found, strict=True)
        ]
        print(f"{name:36} Spearman {correlation:6.3f}   best half in common {np.mean(both):.2f}", flush=True)
    print(f"{args.batches} batches of {config.batch}; jax {jax.__version__}")


if __name__ == "__main__":
    main(sys.argv[1:])
