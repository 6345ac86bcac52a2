"""How this program was called, for commands that it advises."""

import sys
from pathlib import Path


def program() -> list[str]:
    """By its name, or as a module."""
    return ["greats"] if Path(sys.argv[0]).name == "greats" else [sys.executable, "-m", "greats_jax"]
