"""`greats evaluate`."""

import dataclasses
import sys

from greats_jax.models import combine, partition
from greats_jax.training.evaluation import evaluate_tasks, evaluation_sets, row_losses
from greats_jax.training.losses import language_model_loss
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
    print(f"{run.weights}: {len(data.validation)} validation and {len(data.test)} test examples", file=sys.stderr)
    measured = evaluate_tasks(
        evaluation_sets(data, config.evaluate_batch), row_losses(language_model_loss(graphdef, combine)), params, frozen
    )
    for split in ("validation", "test"):
        print(f"{split}_perplexity {measured[f'{split}_perplexity']:.4f}  {split}_loss {measured[f'{split}_loss']:.4f}")
    return 0
