from greats_jax.experiments.wording import failures


def test_runs_that_failed_for_one_reason_share_a_line():
    lines = failures({"a-0": "disk full", "b-0": "no label", "a-1": "disk full", "c-0": "disk full", "b-1": "no label"})
    assert lines == ["a-0 and 2 others failed: disk full", "b-0 and 1 other failed: no label"]
