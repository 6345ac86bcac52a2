"""The examples of docs/ghost.md run, and show what they say."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from greats_jax.ghost import PerExampleGrads, reference


@pytest.fixture(scope="module")
def guide(repository) -> str:
    return (repository / "docs" / "ghost.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def ran(guide) -> dict:
    """The names that the examples leave behind, run one after the other."""
    names: dict = {"print": lambda *_: None}
    for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
        exec(block, names)
    return names


def test_the_example_computes_what_it_says(ran):
    slow = reference.per_example_grads(ran["loss_fn"], ran["params"], ran["batch"])
    gram = reference.gram(slow)
    np.testing.assert_allclose(ran["gram"], gram, atol=1e-5 * float(gram.max()))
    best = jnp.argsort(-gram[:6, 6:].mean(1))[:3]
    for name, found in ran["update"].items():
        np.testing.assert_allclose(found, slow[name][best].mean(0), atol=1e-6)


def test_the_table_is_the_one_that_is_printed(guide, ran):
    (table,) = re.findall(r"```text\n(.*?)```", guide, re.DOTALL)
    assert table.strip() == str(ran["grads"].explain())


def test_every_method_in_the_guide_exists(guide):
    section = guide[guide.index("and offers:") : guide.index("Numbers are exact")]
    named = set(re.findall(r"`\.?(\w+)\(", section))
    assert {"gram", "dot", "explain"} <= named
    assert [name for name in sorted(named) if not hasattr(PerExampleGrads, name)] == []
