"""What devices send each other for the Gram matrix of one weight, by way of exchanging it: a table in Markdown.

Programs are compiled for eight simulated devices and read, not run:

    python scripts/measure_exchange.py --examples 64 --tokens 512
"""

from __future__ import annotations

import argparse
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from greats_jax.analysis.collectives import bytes_received
from greats_jax.ghost import Spread, contractions, value_and_per_example_grads

WEIGHTS = {
    "adapter of rank 16, A": (4096, 16),
    "adapter of rank 16, B": (16, 4096),
    "adapter of rank 128, A": (4096, 128),
    "adapter of rank 512, A": (4096, 512),
    "attention kernel": (4096, 4096),
    "feed-forward kernel": (4096, 14336),
}
WAYS = {"factors": "ghost", "gradients": "instantiate"}


def loss(weight: jax.Array, row: tuple[jax.Array, jax.Array]) -> jax.Array:
    """A dense layer whose output has a given gradient."""
    x, arriving = row
    return jnp.sum((x @ weight) * arriving)


def measure(shape: tuple[int, int], examples: int, tokens: int, way: str, rank: int) -> tuple[int, str]:
    """Bytes that each device receives, and what is chosen when the choice is free."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    transform = value_and_per_example_grads(loss, instantiate_below=0)
    free, chosen = contractions.gram_plan, []

    def plan(leaf):
        found = free(leaf)
        chosen.append(found[0])
        return (WAYS[way], found[1]) if way in WAYS else found

    def gram(weight, batch):
        grads = transform(weight, batch)[1].over(Spread(mesh, ("data",)))
        if way == "features":
            features = grads.project(rank, jax.random.key(0))
            return features @ features.T
        return grads.gram()

    batch = tuple(jax.ShapeDtypeStruct((examples, tokens, d), jnp.float32, sharding=rows) for d in shape)
    weight = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    out = NamedSharding(mesh, PartitionSpec())
    with mock.patch.object(contractions, "gram_plan", plan):
        compiled = jax.jit(gram, out_shardings=out).lower(weight, batch).compile()
    return sum(bytes_received(compiled.as_text() or "").values()), chosen[0] if chosen else ""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=64, help="candidates of all devices together")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=1024, help="features of a projected gradient")
    given = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 8)
    print("| weight | shape | factors | gradients | features | chosen (exact) |\n|---|---|--:|--:|--:|---|")
    for name, shape in WEIGHTS.items():
        found = {}
        for way in ("factors", "gradients", "features", "free"):
            found[way], plan = measure(shape, given.examples, given.tokens, way, given.rank)
        chosen = "gradients" if plan == "instantiate" else "factors"
        sizes = " | ".join(f"{found[way] / 2**20:.2f}" for way in ("factors", "gradients", "features"))
        print(f"| {name} | {shape[0]} x {shape[1]} | {sizes} | {chosen} |", flush=True)


if __name__ == "__main__":
    main()
