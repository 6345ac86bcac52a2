import threading

import numpy as np
import pytest

from greats_jax.data import Example
from greats_jax.training.draws import prefetch, recent_indices, validation_rows


def example(number: int) -> Example:
    return Example(f"v{number}", "v", np.zeros(2, np.int32), np.ones(2, bool))


EXAMPLES = [example(number) for number in range(10)]


def test_few_validation_examples_are_all_used_in_order():
    assert validation_rows(EXAMPLES, 10, seed=0, step=5) == EXAMPLES


def test_many_are_drawn_afresh_at_each_step_and_again_the_same():
    draws = [tuple(row.id for row in validation_rows(EXAMPLES, 3, seed=1, step=step)) for step in range(50)]
    again = [tuple(row.id for row in validation_rows(EXAMPLES, 3, seed=1, step=step)) for step in range(50)]
    assert draws == again
    assert all(len(set(draw)) == 3 for draw in draws)
    assert {name for draw in draws for name in draw} == {row.id for row in EXAMPLES}
    assert draws != [tuple(row.id for row in validation_rows(EXAMPLES, 3, seed=2, step=step)) for step in range(50)]


def test_prefetch_keeps_the_order_and_works_in_another_thread():
    threads = set()

    def make(number: int) -> int:
        threads.add(threading.current_thread())
        return number * number

    assert list(prefetch(make, 7)) == [number * number for number in range(7)]
    assert threading.main_thread() not in threads
    assert list(prefetch(make, 0)) == []
    assert list(prefetch(make, 1)) == [0]


def test_prefetch_raises_where_the_item_would_have_come_and_stops_when_abandoned():
    made = []

    def make(number: int) -> int:
        made.append(number)
        if number == 2:
            raise ValueError("item 2")
        return number

    items = prefetch(make, 100)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(ValueError, match="item 2"):
        next(items)
    assert len(made) < 10

    items = prefetch(lambda number: number, 100)
    next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("greats-data")]


def test_without_a_limit_all_are_used():
    assert validation_rows(EXAMPLES, None, seed=0, step=5) == EXAMPLES


class Sampler:
    """Two candidates a step, of a pool of eight."""

    pool = EXAMPLES[:8]
    batch_size = 2

    def indices(self, step: int) -> np.ndarray:
        return np.array([2 * step % 8, (2 * step + 1) % 8])


def recent(step: int, per_step: int | None = None, window: int = 2, seed: int = 0) -> list[int]:
    return sorted(recent_indices(Sampler(), per_step, window, seed, step).tolist())  # pyright: ignore


def test_the_moving_buffer_holds_the_candidates_of_the_steps_before():
    assert recent(3) == [2, 3, 4, 5]
    assert recent(3, window=1) == [4, 5]


def test_a_candidate_of_the_step_is_never_in_the_buffer():
    for step in range(10):
        assert not set(recent(step, window=8)) & set(Sampler().indices(step))


def test_at_the_start_random_examples_of_the_pool_stand_in():
    drawn = recent(0, per_step=3)
    assert len(drawn) == 3
    assert not set(drawn) & {0, 1}
    assert drawn == recent(0, per_step=3)
    assert any(recent(0, per_step=3, seed=seed) != drawn for seed in range(1, 5))


def test_a_long_buffer_is_drawn_from():
    draws = [recent(step, per_step=2, window=4) for step in range(4, 20)]
    assert all(len(set(draw)) == 2 for draw in draws)
    assert len({tuple(draw) for draw in draws}) > 4
