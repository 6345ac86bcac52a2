"""Files that a run has written, read again after whatever happened to them."""

import json
import shutil

import pytest
from fuzzing import examples, fuzz, mutated, values
from hypothesis import strategies as st

from greats_jax.errors import RunError
from greats_jax.training.jsonl import JsonLines, read_json_lines
from greats_jax.training.result import RunResult
from greats_jax.training.summary import summarize


@examples
@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "selections.jsonl", "config.yaml"])
def test_a_damaged_run_folder_is_refused_or_read(name, examples, finished_run, tmp_path):
    folder = shutil.copytree(finished_run.result.folder, tmp_path / "run")
    path = folder / name
    whole = path.read_bytes()
    damage = mutated(whole)
    if name == "summary.json":
        damage = st.one_of(damage, values.filter(writable).map(lambda value: json.dumps(value).encode()))

    def load(raw: bytes) -> None:
        path.write_bytes(raw)
        RunResult.load(folder)

    fuzz(load, damage, examples)


def writable(value: object) -> bool:
    try:
        json.dumps(value)
    except ValueError:  # an integer of thousands of digits
        return False
    return True


@pytest.mark.parametrize("text", ["{}", "[]", "7", '{"status": 1}', "", "\xff", "[" * 100_000], ids=range(7))
def test_a_summary_that_is_none_is_one_line(text, finished_run, tmp_path):
    folder = shutil.copytree(finished_run.result.folder, tmp_path / "run")
    (folder / "summary.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"summary\.json: .*the run folder is damaged"):
        RunResult.load(folder)


@pytest.mark.parametrize("line", [b"{", b"7", b"\xff", b"[" * 100_000, b'"text"'], ids=range(5))
def test_a_line_that_is_no_record_is_named_unless_it_is_the_last(line, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    with pytest.raises(RunError, match=r"x\.jsonl:2: not a JSON record"):
        read_json_lines(path)
    assert read_json_lines(path, 9) == [{"a": 1}]
    path.write_bytes(b'{"a": 1}\n' + line)
    assert read_json_lines(path) == [{"a": 1}]


def test_what_json_has_no_word_for_is_written_as_text(tmp_path):
    """A record of a Parquet file may hold a date or bytes; it is exported with the others."""
    import datetime

    lines = JsonLines(tmp_path / "x.jsonl")
    lines.write({"when": datetime.date(2026, 1, 2), "raw": b"a", "nan": float("nan")})
    lines.close()
    assert read_json_lines(tmp_path / "x.jsonl") == [{"when": "2026-01-02", "raw": "b'a'", "nan": None}]


def test_a_summary_of_nothing_is_one(tmp_path):
    assert summarize([], [])["steps"] == 0
