"""The measurement of clean picks, with a pool and few updates that take seconds."""

import json
import math

import pytest


@pytest.fixture(scope="module")
def script(load_program):
    return load_program("scripts/clean_picks.py")


def test_shares_are_measured_against_chance_in_the_same_seed(script, tmp_path, capsys):
    script.main(["--seeds", "2", "--updates", "4", "--rules", "max_loss", "--json", str(tmp_path / "x")])
    found = json.loads((tmp_path / "x").read_text())
    assert list(found) == ["random_k", "max_loss"]  # the control runs unasked, and first
    for control, result in zip(found["random_k"], found["max_loss"], strict=True):
        # Each of the eight kept is clean or wrong.
        assert math.isclose(result["clean share"] * 32, round(result["clean share"] * 32), abs_tol=1e-4)
        assert result["first quarter"] * 8 == pytest.approx(round(result["first quarter"] * 8), abs=1e-4)
        assert result["clean share less random_k"] == result["clean share"] - control["clean share"]
    lines = capsys.readouterr().out.splitlines()
    mean, half = script.interval([100 * result["clean share"] for result in found["max_loss"]])
    assert lines[2].split()[:4] == ["max_loss", f"{mean:.1f}", "±", f"{half:.1f}"]
    assert lines[-1].startswith("2 seeds, 4 updates;")


def test_the_interval_is_students(script):
    mean, half = script.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert half == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)  # t(0.975, 4 degrees of freedom) from a table
    assert math.isnan(script.interval([1.0])[1])


def test_a_mistake_is_one_line(script):
    with pytest.raises(SystemExit, match="error: unknown selection rule 'greatz'"):
        script.main(["--seeds", "1", "--updates", "1", "--rules", "greatz"])
