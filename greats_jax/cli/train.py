"""`greats train`."""

import shlex
import sys
from collections.abc import Sequence

import jax

from greats_jax.cli.console import Console, closing_table
from greats_jax.cli.program import program
from greats_jax.cli.stopping import stop_on_signals
from greats_jax.training.config_loading import load_config
from greats_jax.training.processes import join, writes
from greats_jax.training.result import RunResult
from greats_jax.training.trainer import Trainer


def train(config_path: str, overrides: Sequence[str], resume: bool = False) -> int:
    """Train, show progress, and end with a table of what happened and where everything is."""
    config = load_config(config_path, overrides)
    join(config.distributed)
    if config.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", config.compilation_cache)
    with stop_on_signals() as stop:
        result = Trainer(config, trackers=[Console()], should_stop=stop.requested, resume=resume).fit()
    if not writes():
        return 0
    print()
    print(closing_table(result.summary))
    print()
    print(where_everything_is(result))
    if result.status == "interrupted":
        again = shlex.join([*program(), "train", config_path, *overrides, "--resume"])
        print(f"greats: interrupted after {result.summary['steps']} updates; go on with: {again}", file=sys.stderr)
    return 0


def where_everything_is(result: RunResult) -> str:
    """The paths of a run, one a line."""
    places = [("run folder", result.folder)]
    if result.status != "interrupted":
        places.append(("weights", result.weights))
    places += [("curve", path) for path in result.plots]
    width = max(len(name) for name, _ in places)
    return "\n".join(f"{name.ljust(width)}  {path}" for name, path in places)
