"""FLOPs counted from traced programs, against counts by hand."""

import jax
import jax.numpy as jnp
import optax
import pytest

from greats_jax.training import TrainState, make_selective_step
from greats_jax.training.costs import matmul_flops, selection_share

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))


def test_products_are_counted_through_jit_scan_and_conditionals():
    product = 2 * 3 * 4 * 5
    assert matmul_flops(lambda a, b: a @ b, A, B) == product
    assert matmul_flops(jax.jit(lambda a, b: jax.jit(jnp.matmul)(a, b)), A, B) == product
    assert (
        matmul_flops(lambda a, b: jax.lax.scan(lambda c, _: (c + (a @ b).sum(), None), 0.0, None, length=7), A, B)
        == 7 * product
    )

    def sometimes(a, b):
        return jax.lax.cond(a.sum() > 0, lambda: a @ b, lambda: jnp.zeros((3, 5)))

    assert matmul_flops(sometimes, A, B) == product
    assert matmul_flops(sometimes, A, B, branch_share=0.25) == product / 4


def test_a_convolution_counts_each_output_times_its_window():
    image, kernel = jnp.ones((1, 2, 8, 8)), jnp.ones((6, 2, 3, 3))
    flops = matmul_flops(lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "VALID"), image, kernel)
    assert flops == 2 * (6 * 6 * 6) * (2 * 3 * 3)


@pytest.mark.parametrize(
    ("rule", "forward_passes"),
    [("random_k", 0), ("regular", 0), ("max_loss", 1), ("rho_loss", 2), ("uds(size=8, width=4)", 1)],
)
@pytest.mark.parametrize("validation", ["merged", "cached"])
def test_a_rule_that_needs_losses_costs_a_forward_pass_and_its_plain_step_and_nothing_else(
    rule, forward_passes, validation
):
    def loss(params, frozen, x):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])
        return jnp.sum((h @ params["head"]) ** 2)

    def with_summary(params, frozen, x):
        return loss(params, frozen, x), {"nuclear": x.sum(), "projection": x[0, :4]}

    n, k = 8, 3
    params = {"layers": jnp.ones((2, 16, 16)), "head": jnp.ones((16, 5))}
    candidates, target = jnp.ones((n, 4, 16)), jnp.ones((2, 4, 16))
    optimizer = optax.adamw(0.1)
    uds = "uds" in rule
    signals = {"reference_losses": loss} if rule == "rho_loss" else {}
    step = make_selective_step(
        with_summary if uds else loss, optimizer, rule, k, validation, has_aux=uds,
        row_signals={name: lambda frozen, row: loss(frozen, None, row) for name in signals},
    )  # fmt: skip

    def plain(params, rows):
        return jax.grad(lambda p: jax.vmap(loss, (None, None, 0))(p, None, rows).mean())(params)

    forward = matmul_flops(jax.vmap(loss, (None, None, 0)), params, None, candidates)
    update = matmul_flops(plain, params, candidates[:k])
    # UDS measures distances to its memory: two matrices of 4 columns, n rows and 8.
    distances = 2 * n * 8 * 4 if uds else 0
    state = TrainState.create(params, optimizer)
    assert matmul_flops(step, state, params, candidates, target) == forward_passes * forward + update + distances
    assert 0 < forward < update


def test_selecting_costs_what_a_plain_step_on_the_kept_does_not_need():
    def loss(params, frozen, x):
        return jnp.sum(jnp.tanh(x @ params["w"]) ** 2)

    params, rows = {"w": jnp.ones((64, 64))}, jnp.ones((8, 4, 64))
    optimizer = optax.sgd(0.1)
    state = TrainState.create(params, optimizer)

    def share(rule, **options):
        step, plain = (
            make_selective_step(loss, optimizer, name, 4, learning_rate=0.1, **options) for name in (rule, "regular")
        )
        return selection_share(step, plain, state, {}, rows, rows[:2], refresh_every=options.get("refresh_every", 1))

    assert share("random_k") == 0
    # A forward pass of 8 rows beside a forward and a weight gradient of 4.
    assert share("max_loss") == pytest.approx(0.5)
    seldom, always = (share("greats_first_order", validation="cached", refresh_every=every) for every in (8, 1))
    assert 0 < seldom < always < 1
