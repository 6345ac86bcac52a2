"""The benchmark runs every mode on a tiny shape, and its floors are those of the cost model."""

import json

import pytest

TINY = "--width 16 --layers 2 --ffn 24 --heads 2 --kv_heads 2 --vocab 32 --n 4 --m 1 --keep 2 --tokens 8 --rounds 1"


@pytest.fixture(scope="module")
def benchmark(load_program):
    return load_program("scripts/benchmark_step.py")


@pytest.mark.slow
def test_a_preset_is_measured_and_written_down(benchmark, tmp_path, capsys):
    steps = "greats,uds,naive,naive-grad-norm"
    benchmark.main(["small", *TINY.split(), "--steps", steps, "--json", str(tmp_path / "found.json")])
    table = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    names = [row["name"] for row in found["results"]]
    assert names == ["plain on n", "plain on k", *steps.split(",")]
    assert all(name in table for name in names)
    assert found["results"][0]["ratio"] == 1.0
    assert all(row["milliseconds"] > 0 and row["flop_ratio"] > 0 for row in found["results"])


@pytest.mark.parametrize(
    ("preset", "step", "floor"),
    [
        ("full-first-order", "first", 0.875),
        ("lora-merged", "greats", 1.125),
        ("lora-cached", "greats-cached", 1 + 1 / 64),
        ("small", "greats", 7 / 6),
        ("small", "max-loss", 5 / 6),
        ("signals", "random-k", 1 / 2),
        ("signals", "max-loss", 1),
        ("signals", "uds", 1),
        ("signals", "adam", 9 / 8),
        ("signals", "layer-wise", 9 / 8),
        ("signals", "adam-cached", 1 + 1 / 64),
        ("memory", "two-pass", (17 / 16 * 3 + 0.5 * 4) / 4),
    ],
)
def test_floors(benchmark, preset, step, floor):
    assert benchmark.floor_of(benchmark.PRESETS[preset], step) == pytest.approx(floor)


def test_an_unknown_step_is_named(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["small", "--steps", "fastest"])
    assert "unknown steps fastest" in capsys.readouterr().err
