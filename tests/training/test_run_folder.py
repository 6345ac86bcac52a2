import json
import math
from pathlib import Path

import pytest

from greats_jax.errors import RunError
from greats_jax.training.jsonl import JsonLines, dumps, read_json_lines
from greats_jax.training.run_folder import abandon, claim


def test_a_new_or_empty_folder_is_claimed(tmp_path):
    claim(tmp_path / "a" / "b")
    claim(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_holds_anything_is_refused_and_untouched(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty; choose another with output="):
        claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (file, file / "below"):
        with pytest.raises(RunError, match="cannot create this folder"):
            claim(folder)
    assert file.read_text() == "mine"

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RunError, match="Permission denied"):
        claim(tmp_path / "new")


def test_abandoning_removes_only_an_empty_folder(tmp_path):
    claim(tmp_path / "run")
    abandon(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    claim(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    abandon(tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_lines_are_standard_json_and_there_at_once(tmp_path):
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.write({"loss": math.nan, "scores": [1.5, math.inf, -math.inf, None], "name": "é"})
    text = (tmp_path / "x.jsonl").read_text(encoding="utf-8")
    lines.close()
    assert text.endswith("\n")
    strict = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict == {"loss": None, "scores": [1.5, None, None, None], "name": "é"}


def test_a_line_cut_short_at_the_end_is_left_out_and_elsewhere_is_damage(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a":')
    assert read_json_lines(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a":\n{"a": 2}\n')
    with pytest.raises(RunError, match=r"x\.jsonl:2"):
        read_json_lines(path)


def test_nested_numbers_are_made_finite():
    assert dumps({"a": ({"b": math.nan},)}) == '{"a": [{"b": null}]}'
