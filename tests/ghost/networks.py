"""Losses that together use every way a weight's gradient is born; each is a plain function that knows nothing of us."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(seed: int, *shape: int, scale: float = 0.5) -> jax.Array:
    """NumPy draws: nothing is compiled to make a fixture."""
    return jnp.asarray(scale * np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tokens(seed: int, *shape: int, below: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, below, shape), jnp.int32)


def mlp_loss(params, example):
    """Dense layers with biases on [t, p] inputs."""
    x, y = example
    h = jnp.tanh(x @ params["first"] + params["bias"])
    return jnp.mean((h @ params["second"] - y) ** 2)


def mlp(n=4, t=3):
    params = {"first": normal(0, 5, 9), "bias": normal(1, 9), "second": normal(2, 9, 4)}
    return mlp_loss, params, (normal(3, n, t, 5, scale=1), normal(4, n, t, 4, scale=1))


def rms_norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6) * scale


def decoder_loss(params, example, *, checkpoint=False):
    """A tied decoder with scanned layers: head axes, a weight shared by all layers, a low-rank adapter, norms."""
    x, y = example
    h = params["embed"][x] + params["positions"]

    def layer(h, w):
        u = rms_norm(h, w["norm"])
        q, k, v = (jnp.einsum("td,dhe->the", u, w[name]) for name in ("q", "k", "v"))
        mixed = jax.nn.softmax(jnp.einsum("the,she->hts", q, k), -1)
        h = h + jnp.einsum("the,hed->td", jnp.einsum("hts,she->the", mixed, v), w["o"])
        h = h + jax.nn.silu(h @ w["up"] + w["bias"]) @ params["shared_down"]
        return h + 2.0 * ((h @ w["a"]) @ w["b"]), None

    h, _ = jax.lax.scan(jax.checkpoint(layer) if checkpoint else layer, h, params["layers"])
    return -jnp.take_along_axis(jax.nn.log_softmax(h @ params["embed"].T), y[:, None], 1).mean()


def remat_decoder_loss(params, example):
    return decoder_loss(params, example, checkpoint=True)


def decoder(n=4, t=5, layers=3, loss=decoder_loss):
    d, heads, size, ff, vocab = 8, 2, 4, 12, 11
    params = {
        "embed": normal(0, vocab, d),
        "positions": normal(1, t, d),
        "shared_down": normal(2, ff, d),
        "layers": {
            "norm": 1 + normal(3, layers, d),
            "q": normal(4, layers, d, heads, size),
            "k": normal(5, layers, d, heads, size),
            "v": normal(6, layers, d, heads, size),
            "o": normal(7, layers, heads, size, d),
            "up": normal(8, layers, d, ff),
            "bias": normal(9, layers, ff),
            "a": normal(10, layers, d, 2),
            "b": normal(11, layers, 2, d),
        },
    }
    return loss, params, (tokens(12, n, t, below=vocab), tokens(13, n, t, below=vocab))


def remat_decoder(n=4, t=5, layers=3):
    return decoder(n, t, layers, remat_decoder_loss)


def convolution_loss(params, example):
    """A convolution, whose gradient is not an outer product: it must fall back."""
    image, label = example
    kernel = params["kernel"]
    h = jax.lax.conv_general_dilated(image[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return -jax.nn.log_softmax(jax.nn.relu(h).mean((0, 1, 2)) @ params["head"])[label]


def convolution(n=4):
    params = {"kernel": normal(0, 3, 3, 2, 5), "head": normal(1, 5, 3)}
    return convolution_loss, params, (normal(2, n, 6, 6, 2, scale=1), tokens(3, n, below=3))


def routing_loss(params, example):
    """A mixture of experts by one-hot dispatch, and a gather of weights by a traced index."""
    x, expert = example
    gate = jax.nn.softmax(x @ params["router"])
    dispatched = jnp.einsum("te,td->etd", gate, x)
    mixed = jnp.einsum("etd,edf->tf", dispatched, params["experts"])
    return jnp.mean((mixed @ params["table"][expert]) ** 2)


def routing(n=4):
    params = {"router": normal(0, 4, 3), "experts": normal(1, 3, 4, 6), "table": normal(2, 5, 6, 2)}
    return routing_loss, params, (normal(3, n, 7, 4, scale=1), tokens(4, n, below=5))


def branching_loss(params, example):
    """Conditionals, sums over padded slices, gradients that stop, and a custom derivative."""
    x, flag = example
    h = jax.lax.cond(flag > 0, lambda: jnp.tanh(x @ params["w"]), lambda: (x @ params["w"]) * 2.0)
    h = h + jax.lax.stop_gradient(x @ params["w"]) + clipped(x @ jnp.concatenate([params["left"], params["right"]], 1))
    return jnp.sum(h**2) / 10


@jax.custom_vjp
def clipped(x):
    return jnp.sin(x)


clipped.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (jnp.clip(g * jnp.cos(x), -0.5, 0.5),))


def branching(n=4):
    params = {"w": normal(0, 4, 6), "left": normal(1, 4, 2), "right": normal(2, 4, 4)}
    return branching_loss, params, (normal(3, n, 5, 4, scale=1), tokens(4, n, below=2))


NETWORKS = [mlp, decoder, remat_decoder, convolution, routing, branching]
