"""A plain Flax NNX training loop, and the two lines that make it selective.

A small transformer learns English letter by letter, from a pool in which three lines of four have their letters
shuffled. Sixteen lines that are known to be good say what it should learn. Run it with

    python examples/nnx_loop.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from greats_jax.training import TrainState, make_selective_step

TEXT = """the river runs down to the sea and the sea gives its water back to the sky. rain falls on the hill, the hill
feeds the spring, and the spring becomes the river again. a child throws a stick from the bridge and runs to the other
side to see it pass. the stick turns in the stream, finds its way under the stones, and is gone. nobody asks where it
went. the old man on the bench says that it went to the sea, like all things that float and wait.""".replace("\n", " ")
LETTERS = sorted(set(TEXT))
LENGTH, WIDTH, STEPS, RATE = 24, 48, 200, 3e-3


class Transformer(nnx.Module):
    """One block: attention to the past, then a feed-forward layer."""

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(len(LETTERS), WIDTH, rngs=rngs)
        self.place = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(WIDTH, 96, rngs=rngs), nnx.Linear(96, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Letters [t] -> logits of the next letter [t, letters]."""
        x = self.embed(ids) + self.place(jnp.arange(ids.size))
        x = x + self.attend(x, mask=nnx.make_causal_mask(ids))
        return self.embed.attend(self.norm(x + self.down(nnx.gelu(self.up(x)))))


def windows(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Pieces of the text, i32[rows, length + 1]."""
    ids = np.array([LETTERS.index(letter) for letter in TEXT], np.int32)
    return ids[rng.integers(0, len(ids) - LENGTH, rows)[:, None] + np.arange(LENGTH + 1)]


def main() -> float:
    """Trains, and returns the mean loss on good lines in nats per letter."""
    rng = np.random.default_rng(0)
    pool, good, test = windows(rng, 1000), windows(rng, 16), windows(rng, 200)
    pool[:750] = rng.permuted(pool[:750], axis=1)

    graphdef, params = nnx.split(Transformer(nnx.Rngs(0)))
    # GREATS weighs redundancy by the learning rate, and reads it where inject_hyperparams keeps it.
    optimizer = optax.inject_hyperparams(optax.adamw)(RATE)

    def loss_fn(params, frozen, line):
        logits = nnx.merge(graphdef, params)(line[:-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, line[1:]).mean()

    def mean_loss(params, lines):
        return jax.vmap(loss_fn, (None, None, 0))(params, {}, lines).mean()

    @jax.jit
    def plain_step(state, lines):
        params, opt_state = state
        loss, grads = jax.value_and_grad(mean_loss)(params, lines)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    # plain: state, step = (params, optimizer.init(params)), plain_step
    state, step = TrainState.create(params, optimizer), make_selective_step(loss_fn, optimizer, keep=4)
    for _ in range(STEPS):
        lines = pool[rng.choice(len(pool), 16, replace=False)]
        # plain: state, _ = step(state, lines)
        state, _ = step(state, {}, lines, good)

    loss = float(jax.jit(mean_loss)(state[0], test))
    print(f"After {STEPS} updates a letter of good English costs {loss:.2f} nats.")
    return loss


if __name__ == "__main__":
    main()
