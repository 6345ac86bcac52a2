"""`greats analyze`."""

import argparse
import sys
from pathlib import Path

from greats_jax.analysis.taylor_plot import plot_taylor
from greats_jax.analysis.taylor_report import advice, fits, tables, write_report
from greats_jax.analysis.taylor_run import TaylorPlan, run_taylor
from greats_jax.cli.progress import Progress
from greats_jax.cli.tables import aligned
from greats_jax.errors import RunError
from greats_jax.training.config_loading import load_config
from greats_jax.training.resolving import resolve
from greats_jax.training.run_folder import claim


def taylor(arguments: argparse.Namespace) -> int:
    """Compare predicted with actual changes of the validation loss, and say what that means for selection."""
    config = resolve(load_config(arguments.config, arguments.overrides))
    plan = TaylorPlan(arguments.subsets, arguments.batches, arguments.after, arguments.learning_rate)
    folder = Path(arguments.output or f"{config.output}-taylor")
    made = not folder.exists()
    claim(folder, "--output")
    try:
        with Progress("subsets") as shown:
            result = run_taylor(config, plan, shown.say, shown.count)
        found = fits(result.outcomes)
        paths = write_report(result, found, folder)
        try:
            paths += plot_taylor(result, found, folder)
        except RunError as missing:
            print(missing, file=sys.stderr)
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()
    for table in tables(result, found):
        print(aligned(table, left=2))
        print()
    print(advice(result, found))
    print()
    for path in paths:
        print(path)
    return 0
