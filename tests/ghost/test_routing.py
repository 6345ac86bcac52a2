"""Mixtures of experts in plain JAX, each with another way to bring tokens to experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agreement import explained_after_checking, factored, materialised
from networks import normal

EXPERTS, TOKENS, WIDTH, HIDDEN, CHOSEN = 3, 6, 4, 5, 2


def parameters():
    return {
        "router": normal(0, WIDTH, EXPERTS, scale=1),
        "up": normal(1, EXPERTS, WIDTH, HIDDEN),
        "down": normal(2, EXPERTS, HIDDEN, WIDTH),
    }


def route(params, x, chosen=CHOSEN):
    """Weights and experts of every token, [t, chosen]."""
    return jax.lax.top_k(jax.nn.softmax(x @ params["router"]), chosen)


def experts(params, slots):
    """All experts, each on its own rows, [e, slots, d]."""
    hidden = jax.nn.relu(jnp.einsum("esd,edf->esf", slots, params["up"]))
    return jnp.einsum("esf,efd->esd", hidden, params["down"])


def scattered(params, x):
    """Rows are scattered into the slots of their experts, gathered from there, and dropped when an expert is full."""
    weights, chosen = route(params, x)
    expert = chosen.reshape(-1)
    place = jnp.cumsum(jax.nn.one_hot(expert, EXPERTS, dtype=jnp.int32), 0)[jnp.arange(expert.size), expert] - 1
    slots = jnp.zeros((EXPERTS, 3, WIDTH)).at[expert, place].set(jnp.repeat(x, CHOSEN, 0), mode="drop")
    back = experts(params, slots).at[expert, place].get(mode="fill", fill_value=0)
    return jnp.einsum("tk,tkd->td", weights, back.reshape(TOKENS, CHOSEN, WIDTH))


def one_hot(params, x):
    """Rows are dispatched and combined by products with one-hot masks."""
    weights, chosen = route(params, x)
    combine = jnp.einsum("tk,tke->te", weights, jax.nn.one_hot(chosen, EXPERTS))
    return jnp.einsum("te,etd->td", combine, experts(params, jnp.einsum("te,td->etd", combine > 0, x)))


def gathered(params, x):
    """Every token gathers the weights of its experts."""
    weights, chosen = route(params, x)
    hidden = jax.nn.relu(jnp.einsum("td,tkdf->tkf", x, params["up"][chosen]))
    return jnp.einsum("tk,tkf,tkfd->td", weights, hidden, params["down"][chosen])


def mapped(params, x):
    """One expert after the other, all of them on all tokens."""
    every = jax.lax.map(lambda w: jax.nn.relu(x @ w[0]) @ w[1], (params["up"], params["down"]))
    return jnp.einsum("te,etd->td", jax.nn.softmax(x @ params["router"]), every)


def side_by_side(params, x):
    """All experts at once by a vmap inside the loss."""
    every = jax.vmap(lambda up, down: jax.nn.relu(x @ up) @ down)(params["up"], params["down"])
    return jnp.einsum("te,etd->td", jax.nn.softmax(x @ params["router"]), every)


def grouped(params, x):
    """Rows sorted by expert and multiplied group by group; the rows of one expert are left out of every group."""
    weights, chosen = route(params, x, 1)
    order = jnp.argsort(chosen[:, 0])
    sizes = jnp.bincount(chosen[:, 0], length=EXPERTS).at[-1].set(0)
    hidden = jax.nn.relu(jax.lax.ragged_dot(x[order], params["up"], sizes))
    return jnp.zeros_like(x).at[order].set(jax.lax.ragged_dot(hidden, params["down"], sizes)) * weights


def grouped_by_gather(params, x):
    """The same as `grouped`, without grouped products."""
    weights, chosen = route(params, x, 1)
    hidden = jax.nn.relu(jnp.einsum("td,tdf->tf", x, params["up"][chosen[:, 0]]))
    out = jnp.einsum("tf,tfd->td", hidden, params["down"][chosen[:, 0]])
    return jnp.where(chosen < EXPERTS - 1, out, 0) * weights


def loss_of(mixture):
    return lambda params, x: jnp.mean((x + mixture(params, x)) ** 2)


@pytest.mark.parametrize("mixture", [scattered, one_hot, gathered, mapped, side_by_side], ids=lambda f: f.__name__)
def test_experts_and_router_are_factored(mixture):
    explanation = explained_after_checking(loss_of(mixture), parameters(), normal(3, 4, TOKENS, WIDTH, scale=1))
    assert materialised(explanation) == {}
    assert factored(explanation) == {"['router']", "['up']", "['down']"}


def test_experts_of_grouped_products_are_materialised_alone():
    params, batch = parameters(), normal(3, 4, TOKENS, WIDTH, scale=1)
    explanation = explained_after_checking(loss_of(grouped), params, batch)
    assert materialised(explanation) == dict.fromkeys(["['up']", "['down']"], "ragged_dot_general")
    assert factored(explanation) == {"['router']"}
    # JAX has no rule to map a grouped product whose weights all examples share; the transform adds one.
    found, expected = (jax.jit(jax.vmap(f, (None, 0)))(params, batch) for f in (grouped, grouped_by_gather))
    assert (expected == 0).any()
    assert (expected != 0).any()
    np.testing.assert_allclose(found, expected, atol=1e-6)
