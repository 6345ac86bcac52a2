import json
import resource
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from greats_jax.errors import RunError
from greats_jax.training.checkpoints import Checkpoints
from greats_jax.training.config import CheckpointConfig
from greats_jax.training.state import TrainState

OPTIMIZER = optax.MultiSteps(optax.adamw(0.1), every_k_schedule=2).gradient_transformation()


def make_state(seed: int = 0, rows: int = 16) -> TrainState:
    """One with everything that a state can hold: two dtypes, an integer, an empty array, a key, a memory."""
    weights = jax.random.normal(jax.random.key(seed), (rows, 8))
    params = {"a": {"w/x": weights, "b": weights[0].astype(jnp.bfloat16)}, "n": jnp.arange(3), "no": jnp.zeros((0, 2))}
    state = TrainState.create(params, OPTIMIZER, seed, memory={"queue": jnp.ones((4, 2)), "key": jax.random.key(9)})
    return state._replace(step=jnp.int32(seed))


def bits(state: TrainState) -> list[bytes]:
    def raw(x: jax.Array) -> bytes:
        return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x).tobytes()

    return [raw(leaf) for leaf in jax.tree.leaves(state)]


def checkpoints_in(folder: Path, **settings: int) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", CheckpointConfig(**settings))


def written(folder: Path, *numbers: int) -> Checkpoints:
    """Checkpoints of `make_state(number)`, complete."""
    checkpoints = checkpoints_in(folder, keep_last=9)
    for number in numbers:
        checkpoints.save(number, make_state(number), {"at": number}, None)
    checkpoints.close()
    return checkpoints


def shapes_of(state: TrainState, sharding=None) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), state)


def test_what_is_restored_is_bit_for_bit_what_was_saved(tmp_path):
    checkpoints = written(tmp_path, 3, 5)
    assert checkpoints.numbers() == [5, 3]
    for like in (make_state(0), shapes_of(make_state(0))):
        state, record = checkpoints.restore(3, like)
        assert record == {"at": 3}
        assert jax.tree.structure(state) == jax.tree.structure(like)
        assert bits(state) == bits(make_state(3))


def test_a_state_may_be_donated_as_soon_as_it_is_saved(tmp_path):
    checkpoints = checkpoints_in(tmp_path)
    state = make_state(1)
    expected = bits(state)
    forget = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 if x.dtype == jnp.float32 else x, s), donate_argnums=0)
    checkpoints.save(1, state, {}, None)
    jax.block_until_ready(forget(state))
    checkpoints.wait()
    assert bits(checkpoints.restore(1, make_state(0))[0]) == expected
    checkpoints.close()


def test_the_last_and_the_best_are_kept_also_by_those_who_come_later(tmp_path):
    first = checkpoints_in(tmp_path, keep_last=2, keep_best=1)
    for number, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None)):
        first.save(number, make_state(number), {}, loss)
    first.close()
    assert first.numbers() == [4, 3, 2]
    later = checkpoints_in(tmp_path, keep_last=2, keep_best=1)
    later.restore(4, make_state(0))
    for number, loss in ((5, 1.5), (6, 1.25)):
        later.save(number, make_state(number), {}, loss)
    later.close()
    assert later.numbers() == [6, 5, 2]


def test_eight_devices_to_one_and_back(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def cut(x: jax.Array) -> NamedSharding:
        spec = PartitionSpec("data") if x.ndim and x.shape[0] == 16 else PartitionSpec()
        return NamedSharding(mesh, spec)

    one = make_state(1)
    eight = jax.tree.map(lambda x: jax.device_put(x, cut(x)), one)
    checkpoints = checkpoints_in(tmp_path)
    checkpoints.save(1, eight, {}, None)
    checkpoints.save(2, one, {}, None)
    checkpoints.close()
    onto_one, _ = checkpoints.restore(1, shapes_of(one))
    onto_eight, _ = checkpoints.restore(2, shapes_of(eight))
    assert bits(onto_one) == bits(onto_eight) == bits(one)
    assert onto_one.params["a"]["w/x"].sharding == one.params["a"]["w/x"].sharding
    moment = onto_eight.opt_state.inner_opt_state[0].mu["a"]["w/x"]
    assert moment.sharding.is_equivalent_to(cut(moment), moment.ndim)
    assert {shard.data.shape for shard in moment.addressable_shards} == {(2, 8)}


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_damage_is_found_or_harmless_whichever_file_it_meets(tmp_path, damage):
    """Not every file matters to what is restored: then it is restored, and is right."""
    checkpoints = written(tmp_path, 1)
    expected, whole = bits(make_state(1)), tmp_path / "checkpoints" / "1"
    shutil.copytree(whole, tmp_path / "whole")
    found = 0
    for file in files_of(whole):
        path, size = whole / file, (whole / file).stat().st_size
        if damage == "missing":
            path.unlink()
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[: size // 2])
        else:
            content = bytearray(path.read_bytes())
            content[size // 2] ^= 4
            path.write_bytes(content)
        try:
            state, record = checkpoints.restore(1, make_state(0))
        except RunError as error:
            found += str(error).startswith("checkpoint 1 cannot be used: ") and "\n" not in str(error)
        else:
            assert (bits(state), record) == (expected, {"at": 1})
        shutil.rmtree(whole)
        shutil.copytree(tmp_path / "whole", whole)
    assert found >= 3


@pytest.mark.slow
def test_damage_is_found_or_harmless_wherever_in_a_file_it_is(tmp_path):
    """Every file, with a bit flipped and with its end cut off at 25 places each."""
    checkpoints = written(tmp_path, 1)
    expected, whole = bits(make_state(1)), tmp_path / "checkpoints" / "1"
    told, like = [], shapes_of(make_state(0))
    for file in files_of(whole):
        path, content = whole / file, (whole / file).read_bytes()
        for at in sorted({round(part * (len(content) - 1) / 24) for part in range(25)}) if content else []:
            flipped = bytearray(content)
            flipped[at] ^= 1 << at % 8
            for damaged in (bytes(flipped), content[:at]):
                path.write_bytes(damaged)
                try:
                    state, record = checkpoints.restore(1, like)
                except RunError as error:
                    told.append(str(error))
                else:
                    assert (bits(state), record) == (expected, {"at": 1})
                    told.append("")
        path.write_bytes(content)
    assert len(told) > 300
    assert all(text.startswith("checkpoint 1 cannot be used: ") and "\n" not in text for text in told if text)
    assert 0 < told.count("") < len(told)


def test_a_record_that_was_changed_is_found(tmp_path):
    checkpoints = written(tmp_path, 1)
    [path] = (tmp_path / "checkpoints" / "1" / "record").glob("metadata")
    record = json.loads(path.read_text())
    record["record"]["at"] = 2
    path.write_text(json.dumps(record))
    with pytest.raises(RunError, match="its record is not as it was written"):
        checkpoints.restore(1, make_state(0))


def test_a_weight_that_was_changed_where_the_format_sees_nothing_is_found(tmp_path):
    checkpoints = written(tmp_path, 1)
    other = checkpoints_in(tmp_path / "other")
    changed = make_state(1)
    changed.params["a"]["w/x"] = changed.params["a"]["w/x"].at[3, 4].add(1e-6)
    other.save(1, changed, {"at": 1}, None)
    other.close()
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "state")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "1" / "state", tmp_path / "checkpoints" / "1" / "state")
    with pytest.raises(RunError, match="params/a/w/x is not as it was saved"):
        checkpoints.restore(1, make_state(0))


def test_the_state_of_another_model_is_refused(tmp_path):
    with pytest.raises(RunError, match="it has another direction/a/w/x than this run"):
        written(tmp_path, 1).restore(1, make_state(0, rows=8))


def test_what_a_killed_write_leaves_is_no_checkpoint_and_goes(tmp_path):
    checkpoints = written(tmp_path, 1)
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "1", left)
    assert checkpoints.numbers() == [1]
    checkpoints.discard(())
    assert not left.exists()


@pytest.fixture
def full_disk():
    """Files may not grow beyond a size: to the code that writes them a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size if size else before[0], before[1]))

    yield limit
    limit(0)


def test_a_full_disk_is_an_error_and_later_writes_succeed_again(tmp_path, full_disk):
    checkpoints = written(tmp_path, 1)
    full_disk(200)
    checkpoints.save(2, make_state(2), {}, None)
    with pytest.raises(RunError, match="File too large"):
        checkpoints.wait()
    full_disk(0)
    assert checkpoints.numbers() == [1]
    checkpoints.save(3, make_state(3), {"at": 3}, None)
    checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]
    assert bits(checkpoints.restore(3, make_state(0))[0]) == bits(make_state(3))
