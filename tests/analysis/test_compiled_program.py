"""What is read from the text of compiled programs, against programs whose costs are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from greats_jax.analysis.collectives import bytes_received
from greats_jax.analysis.compiled_program import matmul_flops
from greats_jax.errors import ArgumentError

ROWS, WIDTH = 64, 32
PRODUCT = 2 * ROWS * WIDTH * WIDTH


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])


def text(function, *arguments, **settings) -> str:
    return jax.jit(function, **settings).lower(*arguments).compile().as_text() or ""


def shape(*axes: int, sharding=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(axes, jnp.float32, sharding=sharding)


def test_loops_count_with_their_turns():
    def seven_layers(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)[0]

    assert matmul_flops(text(seven_layers, shape(ROWS, WIDTH), shape(WIDTH, WIDTH))) == 7 * PRODUCT


def test_a_loop_whose_turns_are_not_known_counts_nothing():
    def until_small(x, w):
        return jax.lax.while_loop(lambda x: x.max() > 1, lambda x: x @ w, x @ w)

    assert matmul_flops(text(until_small, shape(ROWS, WIDTH), shape(WIDTH, WIDTH))) == PRODUCT


def test_each_device_computes_and_receives_its_part(mesh):
    rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    x, w = shape(ROWS, WIDTH, sharding=rows), shape(WIDTH, WIDTH, sharding=whole)
    apart = text(lambda x, w: x @ w, x, w, out_shardings=rows)
    assert matmul_flops(apart) == PRODUCT / 4
    assert not bytes_received(apart)
    # The gradient of the weight is summed over the devices: twice three quarters of it pass by each.
    summed = text(lambda x, w: x.T @ (x @ w), x, w, out_shardings=whole)
    assert bytes_received(summed) == {"all-reduce": 2 * 4 * WIDTH * WIDTH * 3 // 4}


def test_what_is_gathered_in_a_loop_is_gathered_in_every_turn(mesh):
    cut, rows = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((None, "data", None), ("data",)))

    def layers(x, stacked):
        def layer(x, w):
            w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, stacked)[0]

    x, stacked = shape(ROWS, WIDTH, sharding=rows), shape(5, WIDTH, WIDTH, sharding=cut)
    found = bytes_received(text(layers, x, stacked, out_shardings=rows))
    assert found == {"all-gather": 5 * 4 * WIDTH * WIDTH * 3 // 4}


def test_groups_are_read_on_a_mesh_of_two_axes():
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    for axis, others in (("data", 3), ("fsdp", 1)):
        cut, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((axis,), ()))
        program = text(lambda x: x + 1, shape(WIDTH, WIDTH, sharding=cut), out_shardings=whole)
        assert bytes_received(program) == {"all-gather": 4 * WIDTH * WIDTH * others // (others + 1)}


def test_groups_in_an_unknown_hand_are_refused():
    line = "ENTRY %main {\n  %x = f32[4]{0} all-gather(%y), replica_groups=<{0,1}>, dimensions={0}\n}"
    with pytest.raises(ArgumentError, match="unknown way: %x = f32"):
        bytes_received(line)
