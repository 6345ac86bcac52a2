"""`greats score`."""

import argparse
from pathlib import Path

from greats_jax.analysis.score_run import ScoredModel, model_of_config, model_of_run, score_pool
from greats_jax.cli.progress import Progress
from greats_jax.errors import ConfigError
from greats_jax.training.config_loading import load_config
from greats_jax.training.resolving import resolve


def score(arguments: argparse.Namespace) -> int:
    """Score every example of a pool, with a bar that counts them."""
    output = Path(arguments.output)
    if output.suffix != ".parquet":
        raise ConfigError(
            f"--output is {output}, but the table is a Parquet file: give it a name that ends in .parquet"
        )
    scored = _model(arguments)
    method = arguments.method or scored.config.method
    with Progress("examples") as shown:
        batch = arguments.batch or scored.config.batch
        count = score_pool(scored, method, output, batch, shown.say, shown.count)
    print(f"{count:,} examples scored by {method}: {output}")
    return 0


def _model(arguments: argparse.Namespace) -> ScoredModel:
    """From a configuration file or a run folder."""
    if not Path(arguments.source).is_dir():
        return model_of_config(resolve(load_config(arguments.source, arguments.overrides)), arguments.checkpoint)
    if arguments.overrides:
        raise ConfigError(
            f"{arguments.source} is a run, whose settings are what they were; to change {arguments.overrides[0]}, give "
            f"{arguments.source}/config.yaml and --checkpoint {arguments.source}"
        )
    if arguments.checkpoint:
        raise ConfigError(f"{arguments.source} is a run with weights of its own; leave --checkpoint away")
    return model_of_run(arguments.source)
