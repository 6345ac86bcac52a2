"""Bytes that devices receive, from the text of compiled programs."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from greats_jax.analysis.collectives import bytes_received

MESH = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def placed(*axes):
    return NamedSharding(MESH, PartitionSpec(*axes))


def received(function, out, *args):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for shape, sharding in args]
    return bytes_received(jax.jit(function, out_shardings=out).lower(*shapes).compile().as_text() or "")


def test_an_all_gather_brings_what_a_device_did_not_have():
    found = received(lambda x: x * 2, placed(), ((8, 100), placed("a")))
    assert found == {"all-gather": 8 * 100 * 4 * 3 // 4}


def test_groups_of_devices_count_by_their_size():
    found = received(lambda x: x * 2, placed("a"), ((8, 100), placed(("a", "b"))))
    assert found == {"all-gather": 2 * 100 * 4 // 2}


def test_an_all_reduce_brings_its_result_about_twice():
    found = received(lambda x: x.sum(0), placed(), ((8, 100), placed("a")))
    assert found == {"all-reduce": 2 * 100 * 4 * 3 // 4}


def test_an_all_to_all_brings_what_changes_places():
    found = received(lambda x: x * 2, placed(None, "a"), ((8, 100), placed("a")))
    assert found == {"all-to-all": 2 * 100 * 4 * 3 // 4}


def test_a_loop_counts_as_often_as_it_turns():
    def looped(x):
        body = lambda total, row: (total + jnp.dot(row, row.T), None)  # noqa: E731
        return jax.lax.scan(body, jnp.zeros((6, 6)), x)[0]

    found = received(looped, placed(), ((5, 6, 80), placed(None, None, "a")))
    assert found["all-reduce"] in (2 * 36 * 4 * 3 // 4, 5 * (2 * 36 * 4 * 3 // 4))
    once = received(lambda x: jnp.dot(x, x.T), placed(), ((6, 80), placed(None, "a")))
    assert found["all-reduce"] >= once["all-reduce"]


@pytest.mark.parametrize(
    ("groups", "size"),
    [("{{0,1,2,3},{4,5,6,7}}", 4), ("[4,2]<=[8]", 2), ("mesh['x'=4,'y'=2] {'x'}", 4), ("mesh['x'=8] {'x':(1)2}", 2)],
)
def test_groups_are_read_in_every_way_of_writing_them(groups, size):
    line = f"  %g = f32[64]{{0}} all-gather(%p), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    program = "\n".join(["ENTRY %main (p: f32[8]) -> f32[64] {", line, "}"])
    assert bytes_received(program)["all-gather"] == 64 * 4 * (size - 1) // size


def test_the_body_of_a_loop_is_multiplied_by_its_known_turns():
    program = """
%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %r = f32[16]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%add
}

ENTRY %main (p: f32[16]) -> f32[16] {
  %w = (s32[], f32[16]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"7"}}
}
"""
    assert bytes_received(program) == {"all-reduce": 7 * 2 * 64 // 2}
