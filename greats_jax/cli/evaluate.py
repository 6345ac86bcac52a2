"""`greats evaluate`."""

import dataclasses
import sys

import jax

from greats_jax.models import combine, partition
from greats_jax.training.evaluation import EvaluationSet, evaluate_task
from greats_jax.training.losses import language_model_loss, language_rows, make_evaluator
from greats_jax.training.result import RunResult
from greats_jax.training.setup import load_data, load_trained


def evaluate(folder: str, n_test: int | None) -> int:
    """Measure a finished run's model on its task, from the saved weights and the data as they are now."""
    run = RunResult.load(folder)
    config = run.config
    if n_test is not None:
        config = dataclasses.replace(config, task=dataclasses.replace(config.task, n_test=n_test))
    model, tokenizer = load_trained(run)
    data = load_data(config, tokenizer)
    graphdef, params, frozen = partition(model)
    losses_of = make_evaluator(language_model_loss(graphdef, combine))
    key = jax.random.key(0)
    pad_id = data.pool.pad_id
    print(f"{run.weights}: {len(data.validation)} validation and {len(data.test)} test examples", file=sys.stderr)
    measured = evaluate_task(
        EvaluationSet(data.validation, config.evaluate_batch, pad_id),
        EvaluationSet(data.test, config.evaluate_batch, pad_id),
        lambda p, f, batch: losses_of(p, f, language_rows(batch, key, True)),
        params,
        frozen,
    )
    for split in ("validation", "test"):
        print(f"{split}_perplexity {measured[f'{split}_perplexity']:.4f}  {split}_loss {measured[f'{split}_loss']:.4f}")
    return 0
