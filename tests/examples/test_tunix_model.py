"""A model of google-tunix, where it is installed (extra `tunix`)."""

import pytest

# Tunix 0.1.7 uses names that JAX and Flax are about to retire.
pytestmark = pytest.mark.filterwarnings("default")


def test_a_tunix_model_learns_from_the_source_of_its_validation_examples(load_program, capsys):
    pytest.importorskip("tunix")
    result = load_program("examples/tunix_model.py").main()
    assert result["after"] < 0.6 * result["before"]
    assert result["share"] > 0.7
    assert f"{result['share']:.0%} of the kept sequences count up" in capsys.readouterr().out
