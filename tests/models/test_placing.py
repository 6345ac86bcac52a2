"""Models that are loaded straight into shards, in a process whose every allocation is counted."""

import json
import subprocess
import sys

import pytest

from greats_jax.models import save_pretrained

PROGRAM = """
import json, sys
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

jax.config.update("jax_num_cpu_devices", 8)
from greats_jax.models import checkpoint, from_pretrained, partition

folder, dtype = sys.argv[1:]
mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
reads, read = [], checkpoint.StoredTensor.__getitem__
blocks, empty = [], np.empty

def counted(self, index):
    part = read(self, index)
    reads.append((self.name, part.nbytes))
    return part

def allocated(*arguments, **named):
    blocks.append(empty(*arguments, **named))
    return blocks[-1]

def spread(shapes):
    def place(leaf):
        axis = next((i for i in reversed(range(leaf.ndim)) if leaf.shape[i] % 4 == 0), None)
        return NamedSharding(mesh, P(*("fsdp" if i == axis else None for i in range(leaf.ndim))))
    return jax.tree.map(place, shapes)

checkpoint.StoredTensor.__getitem__ = counted
np.empty = allocated
params = partition(from_pretrained(folder, dtype, shardings=spread))[1]
np.empty = empty
checkpoint.StoredTensor.__getitem__ = read
whole = partition(from_pretrained(folder, dtype))[1]
shards = jax.tree.map(lambda x: x.addressable_shards[0].data.nbytes, params)
json.dump({
    "equal": all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), params, whole))),
    "spread": sum(not x.sharding.is_fully_replicated for x in jax.tree.leaves(params)),
    "file bytes": sum(x.nbytes for x in jax.tree.leaves(whole)) * (4 if dtype == "float32" else 8) // 4,
    "read bytes": sum(size for _, size in reads),
    "largest block": max(x.nbytes for x in blocks if x.dtype != object),
    "largest shard": max(jax.tree.leaves(shards)),
    "largest leaf": max(x.nbytes for x in jax.tree.leaves(whole)),
    "dtypes": sorted({str(x.dtype) for x in jax.tree.leaves(params)}),
}, sys.stdout)
"""


@pytest.mark.parametrize(
    ("kind", "dtype"), [pytest.param("llama", "float32", marks=pytest.mark.slow), ("gpt2", "bfloat16")]
)
def test_parameters_are_read_shard_by_shard(kind, dtype, tiny, tmp_path):
    save_pretrained(tiny(kind, vocab_size=64), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path, dtype], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["equal"]
    assert seen["spread"] > 5
    assert seen["dtypes"] == [dtype]
    # What two devices hold is read once, and nothing larger than a shard is ever allocated for it.
    assert seen["read bytes"] == seen["file bytes"]
    assert seen["largest block"] == seen["largest shard"] < seen["largest leaf"] / 3
