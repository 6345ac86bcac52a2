"""Label noise: a small CNN whose pool has a wrong label on every second image, and which images a rule learns from.

The images are made here: a disc, square, cross or ring of random place and size, under noise. A few images with labels
that are known to be right are the validation examples. Run it with

    python examples/noisy_labels_cnn.py
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from greats_jax.training import TrainState, make_selective_step

SIDE, CLASSES = 12, 4
POOL, VALIDATION, TEST, NOISE = 2048, 32, 1024, 0.2
BATCH, KEEP, STEPS, RATE = 64, 8, 300, 3e-3
RULES = ("greats", "random_k", "max_loss", "target_only")  # the last learns from the validation images alone


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images f32[n, side, side, 1] and their classes i32[n]."""
    labels = rng.integers(0, CLASSES, n)
    centre, radius = rng.uniform(4.5, SIDE - 5.5, (2, n, 1, 1)), rng.uniform(3.0, 4.5, (n, 1, 1))
    y, x = np.mgrid[:SIDE, :SIDE][:, None] - centre
    far, near, round_ = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y)), np.hypot(x, y)
    shapes = [round_ < radius, far < radius * 0.9, (near < 1.2) & (far < radius), abs(round_ - radius + 1) < 1]
    images = np.choose(labels[:, None, None], shapes) + rng.normal(0, NOISE, (n, SIDE, SIDE))
    return images[..., None].astype(np.float32), labels.astype(np.int32)


class CNN(nnx.Module):
    """Two convolutions; its norms look at one image at a time, since a per-example gradient must not see the others."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.second = nnx.Conv(16, 16, (3, 3), rngs=rngs)
        self.norms = nnx.List([nnx.GroupNorm(16, 4, rngs=rngs), nnx.GroupNorm(16, 4, rngs=rngs)])
        self.head = nnx.Linear(16 * 9, CLASSES, rngs=rngs)

    def __call__(self, image: jax.Array) -> jax.Array:
        """[n, side, side, 1] -> logits [n, classes]."""
        for convolution, norm in zip((self.first, self.second), self.norms, strict=True):
            image = nnx.max_pool(nnx.relu(norm(convolution(image))), (2, 2), (2, 2))
        return self.head(image.reshape(len(image), -1))


class Task(NamedTuple):
    """A pool of which half of the labels are wrong, and (images, labels) that are all right."""

    pool: tuple[np.ndarray, np.ndarray]
    wrong: np.ndarray  # bool[pool]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def make_task(rng: np.random.Generator) -> Task:
    """Draws all images and gives every second one of the pool another label than its own."""
    images, true = draw(rng, POOL)
    wrong = rng.permutation(POOL) < POOL // 2
    labels = np.where(wrong, (true + rng.integers(1, CLASSES, POOL)) % CLASSES, true).astype(np.int32)
    return Task((images, labels), wrong, draw(rng, VALIDATION), draw(rng, TEST))


def logits_of(graphdef: nnx.GraphDef, params: nnx.State, image: jax.Array) -> jax.Array:
    """[side, side, 1] -> logits [classes]."""
    return nnx.merge(graphdef, params)(image[None])[0]


def accuracy(graphdef: nnx.GraphDef, params: nnx.State, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of the images that get their label."""
    predicted = jnp.argmax(nnx.merge(graphdef, params)(jnp.asarray(images)), -1)
    return float(np.mean(predicted == labels))


def train(rule: str, seed: int = 0) -> dict[str, float]:
    """Trains with a rule; returns the share of learned images whose label is right, and the accuracy on new ones."""
    rng = np.random.default_rng(seed)
    (images, labels), wrong, validation, test = make_task(rng)
    graphdef, params = nnx.split(CNN(nnx.Rngs(seed)))

    def loss_fn(params, frozen, example):
        image, label = example
        return optax.softmax_cross_entropy_with_integer_labels(logits_of(graphdef, params, image), label)

    optimizer = optax.adam(RATE)
    state = TrainState.create(params, optimizer, seed)
    step = make_selective_step(loss_fn, optimizer, rule, KEEP, learning_rate=RATE)
    right = []
    for _ in range(STEPS):
        rows = rng.choice(POOL, BATCH, replace=False)
        state, metrics = step(state, {}, (images[rows], labels[rows]), validation)
        right.append(1.0 if rule == "target_only" else np.mean(~wrong[rows][metrics.selected]))
    return {"clean share": float(np.mean(right)), "test accuracy": accuracy(graphdef, state.params, *test)}


def main() -> dict[str, dict[str, float]]:
    """Compares a rule that looks at gradients with chance, with the largest loss, and with no pool at all."""
    print(f"Half of the labels are wrong. Each of {STEPS} updates learns from {KEEP} of {BATCH} images.")
    print(f"{'rule':12}{'learned with right label':>25}{'test accuracy':>15}")
    results = {}
    for rule in RULES:
        results[rule] = train(rule)
        print(f"{rule:12}{results[rule]['clean share']:25.0%}{results[rule]['test accuracy']:15.0%}", flush=True)
    return results


if __name__ == "__main__":
    main()
