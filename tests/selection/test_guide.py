"""The examples of docs/objectives.md run, and show what they say."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from greats_jax.selection import Signals, get, wrapper_names


@pytest.fixture(scope="module")
def guide(repository) -> str:
    return (repository / "docs" / "objectives.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def blocks(guide) -> list[str]:
    return re.findall(r"```python\n(.*?)```", guide, re.DOTALL)


@pytest.fixture(scope="module")
def ran(blocks) -> dict:
    """The names that the examples leave behind, run one after the other, and what they print."""
    printed: list = []
    names: dict = {"print": lambda *values: printed.append(values), "printed": printed}
    for block in blocks:
        exec(block, names)
    return names


def test_the_new_rule_has_fewer_than_fifteen_lines_and_does_what_it_says(blocks, ran):
    assert len(blocks[0].strip().splitlines()) < 15
    assert ran["printed"][0][0].tolist() == [1, 0]
    np.testing.assert_allclose(ran["printed"][0][2], [0.5, 0.8, -1.0], rtol=1e-4)
    found = get("learnable", margin=0.1)(Signals(losses=jnp.ones(2), alignment=jnp.ones(2)), 1)
    np.testing.assert_allclose(found.scores, 0.9, rtol=1e-4)


def test_the_step_uses_it(ran):
    metrics = ran["metrics"]
    best = np.argsort(-np.asarray(metrics.scores), kind="stable")[:4]
    np.testing.assert_array_equal(metrics.selected, best)
    assert not metrics.skipped


def test_the_same_rule_in_python_and_as_text(ran):
    assert ran["mixed"].name == ran["same"].name
    assert ran["mixed"].needs == ran["same"].needs == {"losses", "alignment", "gram"}
    assert ran["fair"].needs == {"losses", "alignment", "gram", "sources"}


def test_the_memory_takes_sources_in_turn(ran):
    assert [int(values[0][0]) for values in ran["printed"][-3:]] == [0, 2, 3]


def test_every_signal_and_wrapper_is_in_the_tables(guide):
    named = set(re.findall(r"`(\w+)`", guide[guide.index("| signal |") : guide.index("What only you can know")]))
    assert set(Signals._fields) <= named
    around = guide[guide.index("| around a rule |") : guide.index("`soft` and `above` keep")]
    assert set(wrapper_names()) == set(re.findall(r"\n\| `(\w+)\(", around))
