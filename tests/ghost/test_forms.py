"""Which form a contraction takes follows from static shapes; most are traced here, and nothing is allocated."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from agreement import close, explained_after_checking
from networks import mlp, normal, tokens

from greats_jax.ghost import contractions, einsum, value_and_per_example_grads


def dense_loss(params, x):
    return jnp.mean(jnp.tanh(x @ params["w"]) ** 2)


def explained(n, t, p, q):
    """What one dense layer would do, factors kept in any case; shapes alone are traced."""
    params, x = {"w": jax.ShapeDtypeStruct((p, q), "float32")}, jax.ShapeDtypeStruct((n, t, p), "float32")
    _, grads = jax.eval_shape(value_and_per_example_grads(dense_loss, instantiate_below=0.0), params, x)
    return grads.explain()["['w']"]


def test_short_rows_of_a_wide_layer_take_the_ghost_form():
    n, t, p, q = 8, 16, 1024, 2048
    row = explained(n, t, p, q)
    assert row.contraction == "ghost"
    assert row.flops == pytest.approx(2 * (n * t) ** 2 * (p + q), rel=0.01), "inner products of tokens on both sides"
    assert row.peak_bytes == 4 * (n * t) ** 2
    assert row.dot == "per-token"
    assert row.dot_flops == pytest.approx(2 * n * t * p * q, rel=0.01), "the direction meets every token"


def test_long_rows_of_a_narrow_layer_take_the_instantiated_form():
    n, t, p, q = 8, 2048, 64, 128
    row = explained(n, t, p, q)
    assert row.contraction == row.dot == "instantiate"
    assert row.flops == pytest.approx(2 * n * t * p * q + 2 * n**2 * p * q, rel=0.01), "products, then the Gram"
    assert row.dot_flops == pytest.approx(2 * n * t * p * q + 2 * n * p * q, rel=0.01), "products, then the direction"
    assert row.peak_bytes == 4 * n * p * q


@pytest.mark.parametrize(
    ("n", "t", "p", "q", "contraction", "dot"),
    [(64, 100, 16384, 16384, "ghost", "per-token"), (16, 2048, 1024, 1024, "instantiate", "instantiate")],
)
def test_what_would_be_too_large_is_done_in_slices(n, t, p, q, contraction, dot):
    row = explained(n, t, p, q)
    assert re.fullmatch(rf"{contraction} in \d+ slices", row.contraction)
    limit = einsum.INTERMEDIATE_LIMIT if contraction == "ghost" else contractions.INSTANCE_LIMIT
    assert limit / 2 < row.peak_bytes <= limit
    product = 4 * n * (p * q if dot == "instantiate" else t * q)
    sliced = r" in \d+ slices" if product > einsum.INTERMEDIATE_LIMIT else ""
    assert re.fullmatch(dot + sliced, row.dot)


def test_the_table_shows_both_forms():
    *_, batch = mlp()
    _, grads = value_and_per_example_grads(dense_loss, instantiate_below=0.0)({"w": normal(0, 5, 7)}, batch[0])
    head, line = str(grads.explain()).splitlines()
    assert head.split()[:7] == ["leaf", "shape", "kind", "gram", "MFLOP", "dot", "MFLOP"]
    row = grads.explain()["['w']"]
    assert line.split()[3:7:2] == [row.contraction, row.dot]


def forms(t, p, q, below=0.0):
    """One layer at a size that takes a form, against gradients laid out."""
    explanation = explained_after_checking(
        dense_loss, {"w": normal(0, p, q)}, normal(1, 3, t, p, scale=1), instantiate_below=below
    )
    row = explanation["['w']"]
    return row.contraction, row.dot


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ({"t": 2, "p": 16, "q": 18}, ("ghost", "per-token")),
        ({"t": 12, "p": 4, "q": 6}, ("instantiate", "instantiate")),
        ({"t": 12, "p": 4, "q": 6, "below": 1e9}, ("whole", "whole")),
    ],
    ids=["ghost", "instantiate", "whole"],
)
def test_every_form_is_exact(size, expected):
    assert forms(**size) == expected


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [
        ({"t": 2, "p": 16, "q": 18}, 40, (r"ghost in \d+ slices", r"per-token in \d+ slices")),
        ({"t": 12, "p": 4, "q": 6}, 80, (r"instantiate in \d+ slices", r"instantiate in \d+ slices")),
    ],
    ids=["ghost", "instantiate"],
)
def test_every_sliced_form_is_exact(monkeypatch, size, limit, expected):
    monkeypatch.setattr(einsum, "INTERMEDIATE_LIMIT", limit)
    monkeypatch.setattr(contractions, "INSTANCE_LIMIT", limit)
    einsum.plan_contraction.cache_clear()
    try:
        found = forms(**size)
    finally:
        einsum.plan_contraction.cache_clear()
    assert all(re.fullmatch(form, name) for form, name in zip(expected, found, strict=True)), found


def test_a_gram_is_symmetric_and_its_mixed_terms_are_contracted_once(monkeypatch):
    def loss(params, ids):  # a tied table: rows looked up, and products with all rows
        return jax.nn.logsumexp(jnp.tanh(params["table"][ids]) @ params["table"].T, -1).mean()

    params, batch = {"table": normal(0, 23, 16)}, tokens(1, 3, 2, below=23)
    assert explained_after_checking(loss, params, batch)["['table']"].contraction == "ghost"
    _, grads = value_and_per_example_grads(loss, instantiate_below=0.0)(params, batch)
    whole, calls = contractions.contract, []
    monkeypatch.setattr(contractions, "contract", lambda *args: calls.append(args[1]) or whole(*args))
    gram = grads.gram()
    assert len(calls) == 3, "two terms: each with itself, and one with the other"
    close(gram, gram.T)


def test_what_several_weights_share_is_stored_and_contracted_once():
    n, t, d = 4, 3, 64

    def loss(params, x):
        return jnp.mean(sum(jnp.tanh(x @ w) for w in params.values()) ** 2)

    params = {name: jax.ShapeDtypeStruct((d, d), "float32") for name in ("q", "k", "v")}
    x = jax.ShapeDtypeStruct((n, t, d), "float32")
    _, grads = jax.eval_shape(value_and_per_example_grads(loss, instantiate_below=0.0), params, x)
    assert sum(math.prod(a.shape) for a in grads.operands) == (1 + 3) * n * t * d
    assert {row.contraction for row in grads.explain()} == {"ghost"}
    compiled = jax.jit(lambda g: g.gram()).lower(grads).compile().as_text() or ""
    results = re.findall(r"= f32\[([\d,]+)\]\S* dot\(", compiled)
    sizes = [math.prod(map(int, dims.split(","))) for dims in results]
    assert sizes.count((n * t) ** 2) == 1 + 3, "inner products of tokens: of x once, and of each layer's output"
