import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from greats_jax.selection import Signals


@pytest.fixture(scope="module")
def example(load_program):
    return load_program("examples/new_objective.py")


def test_the_new_rule_beats_chance_in_the_step(example, capsys):
    errors = example.main()
    assert errors["only_helpful"] < 0.5 * errors["random_k"]
    assert "only_helpful" in capsys.readouterr().out


def test_the_new_rule_takes_less_than_fifteen_lines(example):
    assert len(inspect.getsource(example.only_helpful.select).splitlines()) < 15


def test_the_new_rule_weighs_what_helps_and_nothing_else(example):
    alignment = jnp.array([jnp.nan, 2.0, -1.0, 0.5, 0.0])
    selection = jax.jit(lambda signals: example.only_helpful(signals, 4))(Signals(alignment=alignment))
    np.testing.assert_array_equal(selection.indices, [1, 3, 0, 0])
    np.testing.assert_array_equal(selection.weights, [2.0, 0.5, 0.0, 0.0])
