"""`greats plan`."""

from collections.abc import Sequence

from greats_jax.cli.tables import aligned
from greats_jax.training.config_loading import load_config
from greats_jax.training.planning import Plan, gib, plan

_PARTS = ("weights", "trained", "optimizer", "direction", "gradients", "logits", "factors", "activations")


def show_plan(config_path: str, overrides: Sequence[str], devices: int | None, memory: float | None) -> int:
    """Print what each mode needs of a device, and what to do if that is too much. Exit code 1 if it is."""
    found = plan(load_config(config_path, overrides), devices, memory)
    mesh = " x ".join(f"{name} {size}" for name, size in found.mesh.items())
    print(f"estimated memory of each device, mesh {mesh}; the first line is the configuration as it is\n")
    print(table(found))
    print(f"\n{found.advice}")
    return 0 if found.fits(found.estimates[0]) else 1


def table(found: Plan) -> str:
    """One line a mode."""
    rows: list[tuple[str, ...]] = [("passes", "parts", "remat", *_PARTS, "in all", "")]
    for estimate in found.estimates:
        mode = estimate.mode
        fits = "" if found.memory is None else "fits" if found.fits(estimate) else "too much"
        sizes = [gib(getattr(estimate, part)) for part in _PARTS]
        rows.append((mode.passes, str(mode.micro_batches), mode.remat, *sizes, gib(estimate.total), fits))
    return aligned(rows, left=3)
