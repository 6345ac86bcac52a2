"""A vocabulary of 128k entries, traced: nothing that large and per example, or per pair of tokens, is ever formed."""

import math

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import pytest

from greats_jax.ghost import value_and_per_example_grads

VOCAB = 131072
N = 8


def cross_entropy(logits, targets):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], 1).mean()


def tied(params, example):
    ids, targets = example
    return cross_entropy(jnp.tanh(params["embed"][ids] @ params["mix"]) @ params["embed"].T, targets)


def untied(params, example):
    ids, targets = example
    return cross_entropy(jnp.tanh(params["embed"][ids] @ params["mix"]) @ params["head"], targets)


CONTRACTIONS = {
    "gram": lambda g, _: g.gram(),
    "cross": lambda g, _: g.cross(g[: N // 2]),
    "squared_norms": lambda g, _: g.squared_norms(),
    "dot": lambda g, params: g.dot(params),
    "weighted_sum": lambda g, _: g.weighted_sum(jnp.ones(N)),
    "align": lambda g, _: g[: N - 1].align(g[N - 1 :], jnp.ones(1)),
    "gram_and_dot": lambda g, params: g.gram_and_dot(params),
    "gram_and_alignment": lambda g, _: g[: N - 1].gram_and_alignment(g[N - 1 :], jnp.ones(1)),
    "project": lambda g, _: g.project(64, jax.random.key(0)),
}


def abstract(t, d, loss):
    """Shapes of parameters and batch."""
    shapes = {"embed": (VOCAB, d), "mix": (d, d), **({} if loss is tied else {"head": (d, VOCAB)})}
    params = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    return params, (jax.ShapeDtypeStruct((N, t), "int32"),) * 2


def shapes_in(jaxpr):
    """The shapes of all values that a program computes, in it and in every program inside it."""
    found = {v.aval.shape for eqn in jaxpr.eqns for v in eqn.outvars}
    return found.union(*(shapes_in(inner) for eqn in jaxpr.eqns for inner in jex.jaxprs_in_params(eqn.params)))


@pytest.mark.parametrize("loss", [tied, untied], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("t", "d"), [(128, 512), (512, 96)], ids=["wide", "long"])
def test_no_contraction_forms_a_vocabulary_per_example_and_feature(loss, t, d):
    for name, contraction in CONTRACTIONS.items():

        def contracted(params, batch, contraction=contraction):
            return contraction(value_and_per_example_grads(loss)(params, batch)[1], params)

        shapes = shapes_in(jax.make_jaxpr(contracted)(*abstract(t, d, loss)).jaxpr)
        assert (N, t, VOCAB) in shapes, "the logits, which the loss forms"
        largest = max(shapes, key=math.prod)
        assert math.prod(largest) <= N * t * VOCAB, f"{name}: {largest}"
        products = [s for s in shapes if VOCAB in s and t not in s and math.prod(s) >= (N - 1) * VOCAB * d]
        assert products == [], name
