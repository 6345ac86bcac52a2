"""Random small networks: layers of every kind a weight's gradient can be born in, under every way to wrap them."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

Array = jax.Array


class Sizes(NamedTuple):
    """Small and often equal, so that axes are easily taken for one another; width 2 has no gradient through a norm."""

    examples: int
    tokens: int
    width: int
    heads: int
    head_size: int
    rank: int
    vocab: int


class Node(NamedTuple):
    """A layer, or a wrapper around layers that run one after the other (for `cond`: one of which runs)."""

    kind: str
    inside: tuple["Node", ...] = ()
    length: int = 1


class Network(NamedTuple):
    """What is drawn; `seed` gives the numbers."""

    sizes: Sizes
    layers: tuple[Node, ...]
    embedding: bool
    tied: bool
    positions: bool
    frozen_first: bool
    integer_leaf: bool
    weighted: bool
    seed: int


class Around(NamedTuple):
    """What a layer sees besides its own weights and its input."""

    heads: tuple[int, int]
    shared: Array
    frozen: dict[str, Array]
    example: dict[str, Array]


# ---- layers: the shapes of the weights, and the function -------------------------------------------------------------


def _shapes(kind: str, s: Sizes) -> dict[str, tuple[int, ...]]:
    d = s.width
    return {
        "dense": {"kernel": (d, d)},
        "biased": {"kernel": (d, 2 * d), "bias": (2 * d,), "down": (2 * d, d)},
        "heads": {"split": (d, s.heads, s.head_size), "merge": (s.heads, s.head_size, d)},
        "attention": dict.fromkeys(("q", "k", "v"), (d, s.heads, s.head_size)),
        "lora": {"a": (d, s.rank), "b": (s.rank, d)},
        "rms": {"scale": (d,)},
        "layernorm": {"scale": (d,), "bias": (d,)},
        "twice": {"kernel": (d, d)},
        "views": {"kernel": (s.heads * s.head_size, d)},
        "scaled": {"kernel": (d, d), "gain": (d,)},
        "branches": {"kernel": (2, d, d)},
        "shared": {},
        "convolution": {"kernel": (3, d, d)},
        "experts": {"router": (d, 2), "kernel": (2, d, d)},
    }[kind]


def _run(kind: str, w: dict[str, Array], h: Array, around: Around) -> Array:
    """One layer, `[t, d] -> [t, d]`, computing in the dtype of its input."""
    w = {name: x.astype(h.dtype) for name, x in w.items()}
    match kind:
        case "dense":
            return jnp.tanh(h @ w["kernel"])
        case "biased":
            return h + jax.nn.silu(h @ w["kernel"] + w["bias"]) @ w["down"]
        case "heads":
            return h + jnp.einsum("the,hed->td", jnp.tanh(jnp.einsum("td,dhe->the", h, w["split"])), w["merge"])
        case "attention":
            q, k, v = (jnp.einsum("td,dhe->the", h, w[name]) for name in ("q", "k", "v"))
            mixed = jnp.einsum("hts,she->the", jax.nn.softmax(jnp.einsum("the,she->hts", q, k), -1), v)
            return h + jnp.einsum("the,dhe->td", mixed, w["v"])
        case "lora":
            return jnp.tanh(h @ around.frozen["base"].astype(h.dtype) + 2.0 * ((h @ w["a"]) @ w["b"]))
        case "rms":
            return h * jax.lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-3) * w["scale"]
        case "layernorm":
            centred = h - h.mean(-1, keepdims=True)
            return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-3) * w["scale"] + w["bias"]
        case "twice":
            return jnp.tanh(jnp.tanh(h @ w["kernel"]) @ w["kernel"])
        case "views":  # of a weight: transposed, negated, divided and reshaped
            split = (-w["kernel"].T / 2).reshape(h.shape[1], *around.heads)
            merge = w["kernel"].reshape(*around.heads, h.shape[1])
            return h + jnp.einsum("the,hed->td", jnp.tanh(jnp.einsum("td,dhe->the", h, split)), merge)
        case "scaled":  # a weight whose columns have a learned size
            return jnp.tanh(h @ (w["kernel"] * w["gain"]))
        case "branches":  # a scan whose iterations all see the same input
            return jax.lax.scan(lambda total, kernel: (total + jnp.tanh(h) @ kernel, None), h, w["kernel"])[0]
        case "shared":
            return h + jnp.tanh(h @ around.shared.astype(h.dtype))
        case "convolution":
            return (
                h
                + jax.lax.conv_general_dilated(
                    h[None], w["kernel"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
                )[0]
            )
        case "experts":
            gate = jax.nn.softmax(h @ w["router"]) * jax.nn.one_hot(around.example["expert"], 2, dtype=h.dtype)
            return h + jnp.einsum("te,td,edf->tf", gate, h, w["kernel"])
    raise AssertionError(kind)


LAYERS = (
    "dense", "biased", "heads", "attention", "lora", "rms", "layernorm", "twice", "views", "scaled", "branches",
    "shared", "convolution", "experts",
)  # fmt: skip
WRAPPERS = ("checkpoint", "jit", "scan", "repeat", "cond of the example", "cond of the batch")


def _apply(node: Node, weights: Any, h: Array, around: Around) -> Array:
    def inner(h: Array, weights: Any) -> Array:
        for child, w in zip(node.inside, weights, strict=True):
            h = _apply(child, w, h, around)
        return h

    match node.kind:
        case "checkpoint":
            return jax.checkpoint(inner)(h, weights)
        case "jit":
            return jax.jit(inner)(h, weights)
        case "scan":  # over stacked layers
            return jax.lax.scan(lambda h, w: (inner(h, w), None), h, weights, length=node.length)[0]
        case "repeat":  # the same weights in every iteration
            return jax.lax.scan(lambda h, _: (inner(h, weights), None), h, None, length=node.length)[0]
        case "cond of the example":
            return jax.lax.cond(around.example["flag"], lambda: inner(h, weights), lambda: 0.5 * h)
        case "cond of the batch":
            return jax.lax.cond(around.frozen["flag"], lambda: 0.5 * h, lambda: inner(h, weights))
        case kind:
            return _run(kind, weights, h, around)


# ---- a network: its loss, parameters and batch -----------------------------------------------------------------------


def loss_of(network: Network, compute: str = "float32") -> Callable[..., Array]:
    """`loss(params, frozen, example)`; the parameters are float32, the layers compute in `compute`."""

    def loss(params: dict, frozen: dict, example: dict) -> Array:
        around = Around(network.sizes[3:5], params["shared"], frozen, example)
        first = (frozen if network.frozen_first else params)["first"].astype(compute)
        if network.embedding:  # an id beyond the table is padding, embedded as zero
            h = first.at[example["input"]].get(mode="fill", fill_value=0)
        else:
            h = example["input"].astype(compute) @ first
        if network.positions:
            h = h + params["positions"].astype(compute)
        for node, weights in zip(network.layers, params["layers"], strict=True):
            h = _apply(node, weights, h, around)
        logits = h @ (first.T if network.tied else params["head"].astype(compute))
        if network.integer_leaf:
            logits = logits * params["count"][1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32)), example["target"][:, None], 1)
        return -chosen.mean() * (example["weight"] if network.weighted else 1.0)

    return loss


def build(network: Network) -> tuple[dict, dict, dict]:
    """Parameters, frozen arrays and a batch."""
    s, rng = network.sizes, np.random.default_rng(network.seed)

    def normal(*shape: int, scale: float = 0.5) -> Array:
        return jnp.asarray(scale * rng.normal(size=shape), jnp.float32)

    def weights(node: Node, stacked: tuple[int, ...] = ()) -> Any:
        if node.kind in LAYERS:
            drawn = {name: normal(*stacked, *shape) for name, shape in _shapes(node.kind, s).items()}
            return drawn | {name: 1 + x for name, x in drawn.items() if name == "scale"}
        deeper = (*stacked, node.length) if node.kind == "scan" else stacked
        return [weights(child, deeper) for child in node.inside]

    n, t, d, vocab = s.examples, s.tokens, s.width, s.vocab
    params: dict[str, Any] = {"shared": normal(d, d)}
    params["layers"] = [weights(node) for node in network.layers]
    if not network.tied:
        params["head"] = normal(d, vocab)
    if network.positions:
        params["positions"] = normal(t, d)
    if network.integer_leaf:
        params["count"] = jnp.arange(3)
    frozen = {"base": normal(d, d), "flag": jnp.asarray(bool(rng.integers(2)))}
    (frozen if network.frozen_first else params)["first"] = normal(vocab, d)
    ids = jnp.asarray(rng.integers(0, vocab + 1, (n, t)), jnp.int32)
    batch = {
        "input": ids if network.embedding else normal(n, t, vocab, scale=1),
        "target": jnp.asarray(rng.integers(0, vocab, (n, t)), jnp.int32),
        "expert": jnp.asarray(rng.integers(0, 2, (n, t)), jnp.int32),
        "flag": jnp.asarray(rng.integers(0, 2, n), bool),
    }
    if network.weighted:
        batch["weight"] = jnp.asarray(rng.uniform(0.5, 2, n), jnp.float32)
    return params, frozen, batch


# ---- strategies ------------------------------------------------------------------------------------------------------

_SIZES = st.builds(
    Sizes,
    examples=st.integers(1, 4),
    tokens=st.integers(1, 5),
    width=st.integers(3, 4),
    heads=st.integers(1, 2),
    head_size=st.integers(1, 3),
    rank=st.integers(1, 2),
    vocab=st.integers(3, 5),
)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """Up to three chains of layers, each inside up to two wrappers; kinds come in a drawn order, so few repeat."""
    kinds = itertools.cycle(draw(st.permutations(LAYERS)))
    wrappers = itertools.cycle(draw(st.permutations(WRAPPERS)))
    layers: list[Node] = []
    for _ in range(draw(st.integers(1, 3))):
        chain = [Node(next(kinds)) for _ in range(draw(st.integers(1, 2)))]
        for _ in range(draw(st.integers(0, 2))):
            chain = [Node(next(wrappers), tuple(chain), draw(st.integers(1, 3)))]
            chain += [Node(next(kinds))] * draw(st.integers(0, 1))
        layers += chain
    flags = [draw(st.booleans()) for _ in range(6)]
    return Network(draw(_SIZES), tuple(layers), *flags, seed=draw(st.integers(0, 2**16)))
