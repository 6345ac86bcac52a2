import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from greats_jax.training.fingerprints import checksums, fingerprint_of_arrays


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "uint32"])
def test_every_flipped_bit_shows(dtype):
    values = np.arange(6).reshape(2, 3) % 2 if dtype == "bool" else np.arange(6).reshape(2, 3)
    whole = np.asarray(jnp.asarray(values, dtype))
    before = checksums([whole])
    assert checksums([whole.copy()]) == before
    for byte in range(whole.nbytes):
        for bit in range(1 if dtype == "bool" else 8):
            raw = bytearray(whole.tobytes())
            raw[byte] ^= 1 << bit
            assert checksums([np.frombuffer(raw, whole.dtype).reshape(whole.shape)]) != before


def test_by_hand_it_is_a_sum_of_words_times_odd_numbers():
    x = np.array([[1.5, -2.0], [0.0, 3.0]], np.float32)
    words = x.view(np.uint32).ravel().astype(object)
    odd = [2 * 0x9E3779B1 * place + 1 for place in range(4)]
    assert checksums({"x": x}) == {"x": sum(w * o for w, o in zip(words, odd, strict=True)) % 2**32}


def test_elements_that_change_places_show():
    x = jnp.arange(8.0)
    assert checksums([x]) != checksums([x[::-1]])
    assert checksums([x.reshape(2, 4)]) == checksums([x])  # the shape is no part of it ...
    assert fingerprint_of_arrays([x.reshape(2, 4)]) != fingerprint_of_arrays([x])  # ... but of this


def test_it_does_not_depend_on_where_the_parts_are():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jax.random.normal(jax.random.key(0), (8, 6))
    for spec in (PartitionSpec("a", "b"), PartitionSpec(None, "b"), PartitionSpec(("a", "b")), PartitionSpec()):
        assert checksums({"x": jax.device_put(x, NamedSharding(mesh, spec))}) == checksums({"x": x})


def test_keys_small_integers_and_nothing_have_checksums():
    tree = {"key": jax.random.key(3), "four": jnp.array([-8, 7], jnp.int4), "none": jnp.zeros((0, 3))}
    found = checksums(tree)
    assert found["none"] == 0
    assert found["key"] != checksums({"key": jax.random.key(4)})["key"]
    assert found["four"] != checksums({"four": jnp.array([-8, 6], jnp.int4)})["four"]
