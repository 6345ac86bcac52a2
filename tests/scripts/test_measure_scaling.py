"""The table of costs for each device."""

import pytest


@pytest.fixture
def program(load_program):
    return load_program("scripts/measure_scaling.py")


def test_a_row_of_the_table_is_in_the_units_of_its_head(program):
    case = dict(program.large())["8B, LoRA, one pass"]
    cost = program.Cost(2.5e12, 2**30, 3 * 2**29, {"all-gather": 2**29}, 1.0)
    shown = program.line("8B", case, cost, 1e12, 2**30)
    assert shown == f"| 8B | 1 x 8 x 8 | {case.rows} | 2.5 | 1 | 1.5 | 0.5 | 0 | 0 | 0 |"


def test_batches_can_be_cut_over_every_mesh(program):
    for _, case in (*program.small(), *program.large()):
        data, fsdp, _ = case.mesh
        assert case.rows % (data * fsdp) == case.validation % (data * fsdp) == 0


@pytest.mark.slow
def test_devices_share_the_work_and_the_storage(program):
    case = program.Case(
        "tiny",
        {"family": "llama", "vocab_size": 64, "width": 32, "layers": 2, "heads": 2, "kv_heads": 2, "head_dim": 16,
         "ffn_width": 64},
        (1, 1, 1), 8, 16, 4, validation=4,
    )  # fmt: skip
    alone, together = program.measure(case), program.measure(case._replace(mesh=(1, 4, 1)))
    assert together.flops == pytest.approx(alone.flops / 4, rel=0.05)
    assert together.kept < alone.kept / 2
    assert alone.received == {}
    assert together.received["all-gather"] > 0
