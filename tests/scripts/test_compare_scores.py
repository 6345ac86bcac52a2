"""The comparison of ways to score, on the tiny model."""

import re

import pytest


@pytest.fixture(scope="module")
def compare(load_program):
    return load_program("scripts/compare_scores.py")


@pytest.mark.slow
def test_every_way_is_ranked_against_exact_scores(compare, config_file, capsys):
    compare.main([str(config_file), "lora=null", "--batches", "2"])
    out = capsys.readouterr().out
    found = {line[:36].strip(): float(re.findall(r"Spearman +(\S+)", line)[0]) for line in out.splitlines()[:-1]}
    assert found["exact"] == 1.0
    assert found["projected to 4096"] > 0.5
    assert len(found) == 8  # of two layers, a half and a quarter are the same
    assert out.splitlines()[-1].startswith("2 batches of 6;")


def test_a_mistake_is_one_line(compare, config_file):
    with pytest.raises(SystemExit, match="error: batch is 0"):
        compare.main([str(config_file), "batch=0"])
