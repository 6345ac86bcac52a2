"""The command `greats`: reads arguments, runs the package, prints. Nothing else in the package does either."""

from greats_jax.cli.main import main

__all__ = ["main"]
