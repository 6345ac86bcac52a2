"""What runs share is made once, and is what each would have made."""

import jax
import pytest

from greats_jax.training import preparing
from greats_jax.training.config_loading import load_config
from greats_jax.training.preparing import initial_state, prepare
from greats_jax.training.programs import programs_of
from greats_jax.training.resolving import resolve
from greats_jax.training.shelf import Shelf


def test_a_thing_is_made_once_for_each_key():
    shelf, made = Shelf(), []

    def make(name):
        return lambda: made.append(name) or name

    assert [shelf.take("data", key, make(key), most=2) for key in "aabab"] == list("aabab")
    assert made == ["a", "b"]
    shelf.take("data", "c", make("c"), most=2)  # "a" was taken longest ago
    shelf.take("data", "b", make("b"), most=2)
    shelf.take("data", "a", make("a"), most=2)
    assert made == ["a", "b", "c", "a"]
    assert shelf.take("model", "a", make("model"), most=2) == "model"


def test_what_is_dropped_is_dropped_before_the_next_is_made():
    shelf, alive = Shelf(), []

    class Large:
        def __init__(self):
            alive.append(self)
            assert len(shelf._things["model"]) == 0

    shelf.take("model", 1, Large)
    shelf.take("model", 2, Large)


@pytest.fixture
def ready(config_file):
    """Loads a run with a shelf, and its programs."""
    shelf = Shelf()

    def load(*overrides):
        config = resolve(load_config(config_file, overrides))
        run = prepare(config, shelf)
        _, placement = initial_state(config, run)
        return run, programs_of(config, run, placement, shelf)

    return load


def test_runs_that_differ_in_their_seed_share_programs_and_frozen_weights(ready):
    (one, programs), (other, again) = ready(), ready("seed=1", "output=elsewhere", "task.n_test=3")
    assert programs is again
    assert one.tokenizer is other.tokenizer
    frozen = zip(jax.tree.leaves(one.model.frozen), jax.tree.leaves(other.model.frozen), strict=True)
    assert all(mine is its for mine, its in frozen)
    assert not any(x.is_deleted() for x in jax.tree.leaves(one.model.frozen))
    assert one.data is not other.data  # the seed may decide what is held out


def test_the_pool_is_read_once_for_all_seeds_and_tasks(ready, monkeypatch):
    read = []
    build = preparing.build_pool
    monkeypatch.setattr(preparing, "build_pool", lambda *given: read.append(given) or build(*given))
    for override in "seed=1", "task.n_test=3", "method=max_loss":
        ready(override)
    assert len(read) == 1
    ready("data.percentage=50")
    assert len(read) == 2


@pytest.mark.parametrize("override", ["method=max_loss", "keep=2", "optimizer.learning_rate=0.02", "steps=5"])
def test_other_runs_have_programs_of_their_own(ready, override):
    assert ready()[1] is not ready(override)[1]


def test_a_loss_that_knows_a_reference_model_is_not_shared(ready):
    assert ready("method=rho_loss")[1] is not ready("method=rho_loss", "seed=1")[1]
