"""Rules written as text."""

import numpy as np
import pytest
from random_signals import UDS, choose, picked, random_signals

from greats_jax.errors import ArgumentError
from greats_jax.selection import get, wrapper_names


def test_a_name_with_settings_is_the_rule_with_these_settings():
    assert get("partition_sel(budgets=(1, 1))").name == get("partition_sel", budgets=(1, 1)).name
    signals = random_signals(0)._replace(sources=np.zeros(7, np.int32), alignment=np.ones(7), gram=np.eye(7))
    for budget in (0, 2):
        assert len(picked(choose(f"partition_sel(budgets=({budget}, 9))", signals, 3))) == budget
    assert get("greats()").name == "greats"


def test_sums_follow_the_rules_of_arithmetic():
    signals = random_signals(1)
    losses, alignment = np.asarray(signals.losses), np.asarray(signals.alignment)
    for text, expected in {
        "max_loss + greats_first_order": losses + alignment,
        "2*max_loss - greats_first_order*0.5": 2 * losses - 0.5 * alignment,
        "max_loss - (greats_first_order - max_loss)": 2 * losses - alignment,
        "-(max_loss + greats_first_order)": -losses - alignment,
        "-0.5*max_loss": -0.5 * losses,
        "(1 + 2)*max_loss": 3 * losses,
        "2*3*max_loss": 6 * losses,
    }.items():
        np.testing.assert_allclose(choose(text, signals, 3).scores, expected, rtol=1e-5, atol=1e-6, err_msg=text)


def test_a_name_says_how_to_write_the_rule():
    signals = random_signals(2)
    for text in (
        "2*(0.5*max_loss + 0.25*sbert)",
        "max_loss - (sbert + diverse(rho_loss, strength=0.3))",
        "-(max_loss - sbert)",
        "0.1234567891*max_loss + 1e-07*sbert",
        "quota(0.7*normalised(greats) + 0.3*max_loss, share=0.3333333333)",
        "-max_loss*2",
    ):
        rule = get(text)
        again = get(rule.name)
        assert again.name == rule.name
        assert again.needs == rule.needs
        np.testing.assert_array_equal(choose(text, signals, 3).scores, choose(rule.name, signals, 3).scores)


def test_different_settings_have_different_names():
    assert get("0.12345671*max_loss").name != get("0.12345672*max_loss").name
    assert get("soft(max_loss, temperature=0.12345671)").name != get("soft(max_loss, temperature=0.12345672)").name


def test_spaces_and_broken_lines_are_no_matter():
    assert get(" greats ").name == "greats"
    assert get("0.5*greats\n  + 0.5*uds\n").name == "0.5*greats + 0.5*uds"
    assert get(" opus (temperature = 0.5)").name == "opus(temperature=0.5)"


@pytest.mark.parametrize("name", ["normalised", "soft", "sampled", "above", "diverse", "quota"])
def test_every_wrapper_can_be_written(name):
    assert name in wrapper_names()
    assert get(f"{name}(0.5*greats + {UDS})").needs >= get("greats").needs | get("uds").needs


@pytest.mark.parametrize(
    ("text", "message"),
    {
        "great": "did you mean 'greats'",
        "0.5*great": "did you mean 'greats'",
        "greatz(temperature=1)": "did you mean 'greats'",
        "opus(temperatur=1)": "did you mean 'temperature'",
        "greats(learning_rate=1)": "no setting 'learning_rate'",
        "greats(key=1)": "it has none",
        "quoto(greats)": "did you mean 'quota'",
        "quota": "goes around a rule, as in quota",
        "0.5*quota": "goes around a rule, as in quota",
        "quota()": "goes around a rule, as in quota",
        "quota(share=0.5)": "goes around a rule, as in quota",
        "quota(greats, shares=0.5)": "did you mean 'share'",
        "greats(uds)": "nothing called 'greats' can be put around a rule",
        "quota(greats, uds)": "cannot read 'quota",
        "quota(3)": "cannot read 'quota",
        "": "is no selection rule",
        "greats uds": "is no selection rule",
        "greats +": "is no selection rule",
        "(greats": "is no selection rule",
        "greats; uds": "is no selection rule",
        "greats\0": "is no selection rule",
        "5": "is a number, not a selection rule",
        "-2*3": "is a number, not a selection rule",
        "greats + 1": "rules are added to and subtracted from rules",
        "1 - greats": "rules are added to and subtracted from rules",
        "greats*uds": "rules are added to and subtracted from rules",
        "greats/2": "has no meaning",
        "greats**2": "has no meaning",
        "+greats": "cannot read",
        "'greats'": "cannot read",
        "True*greats": "cannot read 'True'",
        "2j*greats": "cannot read '2j'",
        "1e999*greats": "cannot read",
        f"1{'0' * 400}*greats": "cannot read",
        "greats if 1 else uds": "cannot read",
        "[greats]": "cannot read",
        "greats.select": "cannot read",
        "(lambda: greats)()": "cannot read",
        "get('greats')": "cannot read",
        "opus(temperature=uds)": "cannot read the setting",
        "opus(temperature={[]})": "cannot read the setting",
        "opus(**{})": "cannot read the setting",
        "opus(temperature=1, temperature=2)": "given twice",
        "opus(temperature='hot')": "must be a number",
        "opus(temperature=True)": "must be a number",
        "uds(size=1.5)": "must be a whole number",
        "soft(greats, temperature='hot')": "must be a number",
        "soft(greats, temperature=0)": "must be above 0",
        "sampled(greats, temperature=-1)": "must be above 0",
        "diverse(greats, strength=0)": "must be above 0",
        "quota(greats, share=0)": "above 0 and at most 1",
        "quota(greats, share=1.5)": "above 0 and at most 1",
        "-" * 3000 + "greats": "too long",
        "greats + " * 3000 + "greats": "too long",
    }.items(),
)
def test_what_cannot_be_read_is_said_in_one_line(text, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        get(text)
    assert "\n" not in str(caught.value)


def test_settings_beside_an_expression_are_refused():
    with pytest.raises(ArgumentError, match="written inside it"):
        get("0.5*opus + greats", temperature=0.5)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('pathlib').Path('executed').touch()",
        "opus(temperature=__import__('pathlib').Path('executed').touch())",
        "[x for x in open('executed', 'w')]",
        "0.5*greats + open('executed', 'w')",
        "quota(open('executed', 'w'))",
        "greats) or open('executed', 'w'",
    ],
)
def test_nothing_in_an_expression_is_executed(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError):
        get(text)
    assert not list(tmp_path.iterdir())
