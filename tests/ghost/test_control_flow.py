"""Losses with loops, branches, derivatives of their own, and weights that are computed before they are used."""

import jax
import jax.numpy as jnp
import pytest
from agreement import explained_after_checking, factored, materialised
from jax import lax
from networks import normal, tokens

N, T, D = 4, 5, 4


def parameters():
    return {"w": normal(0, D, D), "u": normal(1, D, D), "b": normal(2, D)}


def rows():
    return normal(3, N, T, D, scale=1)


# ---- loops -----------------------------------------------------------------------------------------------------------


def counted(p, x):
    """A loop of known length around one weight."""
    return lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ p["w"] + p["b"]), x) @ p["u"]


def recurrent(p, x):
    """A recurrent network: the scan runs over tokens."""
    return lax.scan(lambda h, x: ((h := jnp.tanh(x @ p["w"] + h @ p["u"] + p["b"])), h), jnp.zeros(D), x)[1]


def nested(p, x):
    """A loop inside a loop, a weight of each."""

    def outer(h, _):
        h = lax.scan(lambda h, _: (jnp.tanh(h @ p["w"] + p["b"]), None), h, length=2)[0]
        return jnp.tanh(h @ p["u"]), None

    return lax.scan(outer, x, length=2)[0]


def backwards(p, x):
    """A scan from the last token to the first, with what comes before and after it."""
    found = lax.scan(lambda h, x: ((h := jnp.tanh(h + x)), h), jnp.zeros(D), x @ p["w"], reverse=True)[1]
    return found @ p["u"] + p["b"]


def associative(p, x):
    """A linear recurrence by parallel prefix sums."""
    keep, new = jax.nn.sigmoid(x @ p["w"] + p["b"]), x @ p["u"]
    return lax.associative_scan(lambda a, b: (a[0] * b[0], b[0] * a[1] + b[1]), (keep, new))[1]


def row_by_row(p, x):
    """A map over tokens."""
    return lax.map(lambda row: jnp.tanh(row @ p["w"] + p["b"]) @ p["u"], x)


def vectorised(p, x):
    """A vmap inside the loss, over tokens."""
    return jax.vmap(lambda row: jnp.tanh(p["w"] @ row + p["b"]) @ p["u"])(x)


# ---- derivatives -----------------------------------------------------------------------------------------------------


@jax.custom_vjp
def backward_by_hand(x, w):
    return jnp.tanh(x @ w)


def _backward(saved, g):
    x, w, y = saved
    g = g * (1 - y**2)
    return g @ w.T, jnp.einsum("tp,tq->pq", x, g)


backward_by_hand.defvjp(lambda x, w: ((y := jnp.tanh(x @ w)), (x, w, y)), _backward)


@jax.custom_jvp
def forward_by_hand(x, w):
    return jnp.tanh(x @ w)


@forward_by_hand.defjvp
def _forward(primals, tangents):
    y = forward_by_hand(*primals)
    return y, (1 - y**2) * (tangents[0] @ primals[1] + primals[0] @ tangents[1])


def own_backward(p, x):
    """A function with a backward rule, inside a rematerialised one."""
    return jax.checkpoint(backward_by_hand)(backward_by_hand(x, p["w"]) + p["b"], p["u"])


def own_forward(p, x):
    """A function with a forward rule, inside a scan."""
    return lax.scan(lambda h, _: (forward_by_hand(h, p["w"]) + p["b"], None), x, length=2)[0] @ p["u"]


def stopped(p, x):
    """Gradients that stop on one of two ways."""
    return jnp.tanh(x @ p["w"]) @ p["u"] + lax.stop_gradient(jnp.tanh(x @ p["u"])) @ p["w"] + p["b"]


# ---- weights ---------------------------------------------------------------------------------------------------------


def several_uses(p, x):
    """One weight three times: plain, transposed, and on other tokens."""
    return jnp.tanh(x @ p["w"]) @ p["w"].T @ p["u"] + x[::-1] @ p["w"] + p["b"]


def scaled(p, x):
    """A weight with a learned size for each of its columns."""
    return jnp.tanh(x @ (p["w"] * p["b"])) @ p["u"]


def merged(p, x):
    """A low-rank update that is added to a weight before it is used."""
    return jnp.tanh(x @ (p["w"] + 0.5 * p["u"][:, :2] @ p["u"][:2])) + p["b"]


def solved(p, x):
    """Linear algebra on a weight."""
    return jnp.linalg.solve(p["w"] @ p["w"].T + jnp.eye(D), (x @ p["u"] + p["b"]).T)


def unrolled(p, x):
    """Stacked weights taken apart by a Python loop."""
    for layer in jnp.stack([p["w"], p["u"]]):
        x = jnp.tanh(x @ layer + p["b"])
    return x


def split(p, x):
    """Halves of a weight used apart."""
    left, right = jnp.split(p["w"], 2, axis=1)
    return jnp.concatenate([jnp.tanh(x @ left), x @ right], 1) @ p["u"] + p["b"]


def masked(p, x):
    """A weight of which a triangle is used."""
    return jnp.tanh(x @ jnp.tril(p["w"])) @ p["u"] + p["b"]


FACTORED = [
    counted, recurrent, nested, backwards, associative, row_by_row, vectorised, own_backward, own_forward, stopped,
    several_uses, scaled,
]  # fmt: skip
PARTLY = [
    (merged, {"['u']"}),
    (solved, set()),
    (unrolled, {"['w']", "['u']"}),
    (split, {"['w']"}),
    (masked, {"['w']"}),
]


def loss_of(network):
    return lambda p, x: jnp.mean(network(p, x) ** 2)


@pytest.mark.parametrize("network", FACTORED, ids=lambda f: f.__name__)
def test_weights_are_factored_through(network):
    forward_mode = network is not own_backward
    explanation = explained_after_checking(loss_of(network), parameters(), rows(), forward_mode=forward_mode)
    assert materialised(explanation) == {}
    assert factored(explanation) >= {"['w']", "['u']"}


@pytest.mark.parametrize(("network", "alone"), PARTLY, ids=lambda x: getattr(x, "__name__", ""))
def test_what_is_done_to_a_weight_first_may_make_that_weight_fall_back(network, alone):
    explanation = explained_after_checking(loss_of(network), parameters(), rows())
    assert set(materialised(explanation)) == alone
    assert factored(explanation) | alone >= {"['w']", "['u']"}


# ---- branches --------------------------------------------------------------------------------------------------------


def test_a_branch_chosen_by_the_example_may_make_its_weights_fall_back():
    def loss(p, example):
        x, kind = example
        branches = [lambda: x @ p["w"], lambda: jnp.tanh(x @ p["w"] + p["b"]), lambda: 2.0 * x]
        return jnp.mean((lax.switch(kind, branches) @ p["u"]) ** 2)

    explanation = explained_after_checking(loss, parameters(), (rows(), tokens(4, N, below=3)))
    assert set(materialised(explanation)) == {"['w']"}
    assert factored(explanation) == {"['u']"}


@pytest.mark.parametrize("flag", [0, 1])
def test_a_branch_chosen_for_all_examples_may_make_its_weights_fall_back(flag):
    def loss(p, flag, x):
        h = lax.cond(flag > 0, lambda: x @ p["w"], lambda: jnp.tanh(x @ p["w"] + p["b"]))
        return jnp.mean((h @ p["u"]) ** 2)

    explanation = explained_after_checking(loss, parameters(), jnp.asarray(flag), rows())
    assert materialised(explanation) == {"['w']": "cond"}
    assert factored(explanation) == {"['u']"}
