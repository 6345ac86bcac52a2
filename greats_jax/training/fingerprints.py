"""Checksums of arrays, taken where the arrays are, and short hashes of what a run or a table of scores stands on."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from greats_jax.data import Example

PyTree = Any

_SPREAD = 0x9E3779B1  # 2^32 over the golden ratio: neighbours get weights far apart


def checksums(tree: PyTree) -> dict[str, int]:
    """A checksum of the bits of every array, by path.

    The bits are read as unsigned words, each is multiplied by an odd number that belongs to its place, and the products
    are added up modulo 2^32. A sum does not depend on its order, so that arrays cut over any devices in any way give
    the same; and an odd number times what a flipped bit changes is never 0, so that every single flip shows.

    Cost: one pass over the arrays on their devices; 4 bytes an array come to the host.
    """
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree.leaves_with_path(tree)]
    sums = jax.device_get(_checksums(jax.tree.leaves(tree)))
    return {name: int(value) for name, value in zip(names, sums, strict=True)}


def fingerprint_of_arrays(tree: PyTree) -> str:
    """Short hash of paths, shapes, dtypes and every bit of all arrays: tells checkpoints of one model apart."""
    digest = hashlib.sha256()
    for (name, value), leaf in zip(checksums(tree).items(), jax.tree.leaves(tree), strict=True):
        digest.update(f"{name} {leaf.shape} {leaf.dtype} {value}\n".encode())
    return digest.hexdigest()[:16]


def fingerprint_of_examples(examples: Sequence[Example]) -> str:
    """Short hash of ids, tokens and labels."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.id.encode() + b"\0")
        digest.update(np.asarray(example.input_ids, np.int32).tobytes())
        digest.update(np.asarray(example.label_mask, bool).tobytes())
    return digest.hexdigest()[:16]


@jax.jit
def _checksums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_checksum(leaf) for leaf in leaves]


def _checksum(x: jax.Array) -> jax.Array:
    words = _words(x)
    # Places are counted along each axis: a flattened array would have to be brought together from its shards.
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride)
    return jnp.sum(words * (place * jnp.uint32(_SPREAD * 2 % 2**32) + jnp.uint32(1)), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """The bits of an array as u32, with one more axis where an element has more than 32."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x).astype(jnp.uint32)
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    if jnp.issubdtype(x.dtype, jnp.integer) and jnp.iinfo(x.dtype).bits < 8:
        x = x.astype(jnp.int8)  # smaller integers have no bits of their own to look at
    bits = min(8 * x.dtype.itemsize, 32)
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)
