"""Candidates are a pure function of seed and step, drawn at random, in few shapes."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greats_jax.data import CandidateSampler, Example, Pool, bucket_lengths, collate, permutation
from greats_jax.errors import DataError

FEW = settings(max_examples=40, deadline=None)


def make_pool(sizes=(30,), weights=None, seed=0, longest=100) -> Pool:
    rng = np.random.default_rng(seed)
    components = np.repeat(np.arange(len(sizes)), sizes)
    examples = []
    for number, component in enumerate(components):
        length = int(rng.integers(2, longest + 1))
        mask = np.arange(length) > 0
        examples.append(Example(str(number), f"s{component}", np.full(length, number, np.int32), mask))
    return Pool(
        examples=tuple(examples),
        originals=({},) * len(examples),
        sources=tuple(f"s{number}" for number in range(len(sizes))),
        source_indices=components.astype(np.int32),
        components=components.astype(np.int32),
        weights=weights,
        counts={f"s{number}": {"kept": size} for number, size in enumerate(sizes)},
        pad_id=7,
    )


@FEW
@given(
    size=st.integers(4, 40), batch=st.integers(1, 4), seed=st.integers(0, 2**40), grouped=st.booleans(), data=st.data()
)
def test_candidates_do_not_depend_on_what_was_drawn_before(size, batch, seed, grouped, data):
    pool = make_pool((size,))
    sampler = CandidateSampler(pool, batch, seed, group_by_length=grouped)
    in_order = [sampler(step).ids for step in range(60)]
    step = data.draw(st.integers(0, 59))
    assert CandidateSampler(pool, batch, seed, group_by_length=grouped)(step).ids == in_order[step]
    assert sampler(step).ids == in_order[step]


@FEW
@given(size=st.integers(4, 40), batch=st.integers(1, 4), seed=st.integers(0, 9), grouped=st.booleans())
def test_an_epoch_sees_each_example_once(size, batch, seed, grouped):
    sampler = CandidateSampler(make_pool((size,)), batch, seed, group_by_length=grouped)
    steps = sampler.steps_per_epoch
    assert steps == size // batch
    for epoch in range(3):
        drawn = np.concatenate([sampler.indices(epoch * steps + step) for step in range(steps)])
        assert len(set(drawn.tolist())) == steps * batch


def test_orders_differ_by_seed_and_epoch():
    pool = make_pool((40,))
    first, second = CandidateSampler(pool, 40, 1), CandidateSampler(pool, 40, 2)
    orders = [sampler.indices(step).tolist() for sampler in (first, second) for step in range(2)]
    assert len({tuple(order) for order in orders}) == 4


def test_every_position_is_equally_likely():
    orders = np.stack([permutation(8, seed) for seed in range(4000)])
    counts = np.stack([np.bincount(column, minlength=8) for column in orders.T])
    assert abs(counts / 4000 - 1 / 8).max() < 0.03


def test_order_is_the_same_on_every_machine_and_version():
    assert permutation(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert permutation(8, 1, 2, 3).tolist() == [1, 3, 7, 5, 2, 0, 4, 6]


@FEW
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.05, 20), min_size=4, max_size=4),
    seed=st.integers(0, 9),
)
def test_weights_set_the_shares(sizes, weights, seed):
    weights = weights[: len(sizes)]
    pool = make_pool(sizes, tuple(weights))
    sampler = CandidateSampler(pool, 1, seed)
    epochs = 4
    drawn = [int(sampler.indices(step)[0]) for step in range(epochs * len(pool))]
    shares = np.array(weights) / sum(weights)
    count = np.bincount(pool.components[drawn], minlength=len(sizes))
    assert (abs(count - epochs * shares * len(pool)) <= epochs).all()
    for component in range(len(sizes)):  # within a source, no example is drawn twice more often than another
        times = Counter(index for index in drawn if pool.components[index] == component)
        members = np.flatnonzero(pool.components == component).tolist()
        assert max(times[index] for index in members) - min(times[index] for index in members) <= 1


def test_weighted_sources_mix_within_batches():
    sampler = CandidateSampler(make_pool((500, 500), (1.0, 1.0)), 8, 0)
    shares = {int(sampler(step).sources.sum()) for step in range(100)}
    assert len(shares) > 3
    first, second = ([sampler(125 * epoch + step).sources.sum() for step in range(125)] for epoch in range(2))
    assert first != second


@FEW
@given(size=st.integers(4, 60), batch=st.integers(1, 4), buckets=st.integers(1, 4), shortest=st.integers(0, 120))
def test_batches_have_few_shapes_and_fit(size, batch, buckets, shortest):
    pool = make_pool((size,))
    sampler = CandidateSampler(pool, batch, 3, buckets=buckets, min_length=shortest)
    assert 1 <= len(sampler.bucket_lengths) <= buckets
    for step in range(20):
        candidates = sampler(step)
        batch_ids, attention, labels = candidates.batch
        assert batch_ids.shape[1] in sampler.bucket_lengths
        assert batch_ids.shape[1] % 8 == 0
        assert batch_ids.shape[1] >= shortest
        assert attention.sum(axis=1).tolist() == pool.lengths[candidates.indices].tolist()
        assert candidates.padding_share == pytest.approx(1 - attention.mean())
        assert (batch_ids[~attention] == pool.pad_id).all()
        assert not labels[~attention].any()
        for row, index in enumerate(candidates.indices):
            assert (batch_ids[row][attention[row]] == index).all()
            assert candidates.ids[row] == pool[index].id
            assert pool.sources[candidates.sources[row]] == pool[index].source


def test_smallest_bucket_that_holds_the_batch():
    sampler = CandidateSampler(make_pool((400,)), 2, 0)
    lengths = sampler.bucket_lengths
    assert len(lengths) == 4
    used = Counter()
    for step in range(200):
        candidates = sampler(step)
        longest = sampler.pool.lengths[candidates.indices].max()
        length = candidates.batch.input_ids.shape[1]
        assert length == min(edge for edge in lengths if edge >= longest)
        used[length] += 1
    assert min(used.values()) > 10  # the edges are quantiles of the longest rows, so each serves some


def test_grouping_by_length_saves_padding():
    pool = make_pool((800,))

    def mean(grouped):
        sampler = CandidateSampler(pool, 8, 0, group_by_length=grouped)
        return np.mean([sampler(step).padding_share for step in range(100)])

    assert mean(True) < 0.6 * mean(False)


def test_bucket_lengths_are_the_same_for_every_seed():
    pool = make_pool((300,))
    assert CandidateSampler(pool, 4, 1).bucket_lengths == CandidateSampler(pool, 4, 2).bucket_lengths


def test_bucket_lengths():
    assert bucket_lengths(np.arange(1, 101), 4) == (32, 56, 80, 104)
    assert bucket_lengths(np.arange(1, 101), 1) == (104,)
    assert bucket_lengths(np.array([5, 5, 5]), 4) == (8,)
    assert bucket_lengths(np.array([5, 5, 5]), 2, longest=30) == (8, 32)
    assert bucket_lengths(np.array([5, 50]), 2, min_length=20) == (56,)


def test_threads_see_the_same_candidates():
    sampler = CandidateSampler(make_pool((40,)), 4, 5)
    expected = [CandidateSampler(make_pool((40,)), 4, 5)(step).ids for step in range(200)]
    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(lambda step: sampler(step).ids, range(200))) == expected


def test_collate_pads_rows():
    example = make_pool((1,))[0]
    batch = collate([example], 104, 9, rows=3)
    assert batch.input_ids.shape == (3, 104)
    assert batch.input_ids.dtype == np.int32
    assert not batch.attention_mask[1:].any()
    assert not batch.label_mask[1:].any()
    with pytest.raises(DataError, match="does not fit in a batch of length 1"):
        collate([example], 1, 9)
    with pytest.raises(DataError, match="2 examples do not fit"):
        collate([example] * 2, 104, 9, rows=1)


@pytest.mark.parametrize(
    ("size", "batch", "options", "message"),
    [
        (3, 4, {}, "the pool has 3 examples, fewer than the 4 candidates"),
        (3, 0, {}, "needs at least 1"),
        (3, 1, {"seed": -1}, "must not be negative"),
        (3, 1, {"buckets": 5}, "must be 1 to 4"),
    ],
)
def test_arguments_that_cannot_work(size, batch, options, message):
    with pytest.raises(DataError, match=message):
        CandidateSampler(make_pool((size,)), batch, **options)


def test_negative_step():
    with pytest.raises(DataError, match="step -1"):
        CandidateSampler(make_pool(), 2)(-1)
