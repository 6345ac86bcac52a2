"""Files of benchmarks: which one is meant, and a line for everything that can be wrong with them."""

import gzip
import json

import pytest

from greats_jax.errors import TaskError
from greats_jax.tasks.original_files import (
    file_bytes,
    file_rows,
    files_of_split,
    hub_rows,
    local_path,
    parsed_json,
    read_splits,
)

from .conftest import write_lines


def names(folder, *words):
    return [file.relative_to(folder).as_posix() for file in files_of_split(folder, words)]


def test_which_file_a_split_is(tmp_path):
    for name in ("gsm8k_train.jsonl", "data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet",
                 "latest.json", "contest.csv", "test.txt", "README.md"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path, "train") == ["gsm8k_train.jsonl"]
    assert names(tmp_path, "test") == ["data/test-00000-of-00002.parquet", "data/test-00001-of-00002.parquet"]
    assert names(tmp_path, "validation", "train") == ["gsm8k_train.jsonl"]
    assert names(tmp_path, "validation") == []
    (tmp_path / "socratic_train.jsonl.gz").touch()
    with pytest.raises(TaskError, match=r"several files could be the train split \(gsm8k_train.jsonl, socratic_"):
        names(tmp_path, "train")


def splits(path, test_path=None, learn=2, test=10):
    return read_splits(str(path), test_path, ("train",), learn, test, "")


def test_what_is_learned_and_what_is_tested(tmp_path):
    rows = [{"n": number} for number in range(5)]
    train, test = write_lines(tmp_path / "f" / "train.jsonl", rows), write_lines(tmp_path / "f" / "test.jsonl", rows)

    def numbers(read):
        return [row.fields["n"] for row in read.learn], [row.fields["n"] for row in read.test], read.first_test

    assert numbers(splits(tmp_path / "f", test=3)) == ([0, 1], [0, 1, 2], 0)
    assert numbers(splits(train, test)) == ([0, 1], [0, 1, 2, 3, 4], 0)
    assert numbers(splits(test)) == ([0, 1], [2, 3, 4], 2)
    assert numbers(splits(test, learn=5, test=0)) == ([0, 1, 2, 3, 4], [], 5)
    with pytest.raises(TaskError, match=r"holds 5 rows, and 5 are kept .* none is left to test"):
        splits(test, learn=5)
    with pytest.raises(TaskError, match=r"correct task.test_path|no such file"):
        splits(train, "none/such")
    (tmp_path / "f" / "test.jsonl").unlink()
    with pytest.raises(TaskError, match=r"holds no file whose name says test"):
        splits(tmp_path / "f")


def test_hub_configuration(hub):
    hub({("a/b", "c", "train"): [{"n": 1}], ("a/b", "c", "test"): [{"n": 2}, {"n": 3}]})
    read = read_splits("a/b", None, ("train",), 1, 1, "c")
    assert [row.place for row in (*read.learn, *read.test)] == ["a/b:c, train[:1] row 1", "a/b:c, test[:1] row 1"]
    with pytest.raises(TaskError, match="neither a local file or folder nor a Hugging Face data set"):
        hub_rows("a/b:c", "validation")


def test_paths(tmp_path, monkeypatch):
    assert local_path(str(tmp_path)) == tmp_path
    assert local_path("openai/gsm8k") is None
    assert local_path("openai/gsm8k:main") is None
    for path in ("./a/b", "a/b.jsonl", "a/b/c", "none", "\x00"):
        with pytest.raises(TaskError, match="no such file or folder"):
            local_path(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~") == tmp_path


def test_files_that_cannot_be_read(tmp_path):
    packed = tmp_path / "a.json.gz"
    packed.write_bytes(gzip.compress(b'{"a": 1}'))
    assert parsed_json(file_bytes(packed), "a") == {"a": 1}
    packed.write_bytes(packed.read_bytes()[:-4])
    with pytest.raises(TaskError, match=r"a.json.gz: damaged or cut-off gzip file"):
        file_bytes(packed)
    with pytest.raises(TaskError, match="cannot be read: Is a directory"):
        file_bytes(tmp_path)
    for content in b"{", b"\xff", b"[" * 100_000:
        with pytest.raises(TaskError, match="here: not valid JSON in UTF-8"):
            parsed_json(content, "here")
    with pytest.raises(TaskError, match="here: holds half of a surrogate pair"):
        parsed_json(b'"\\ud800"', "here")


def test_rows_with_their_places(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "b"}\n\n{"a": 1}\n')
    first, second = file_rows(path)
    assert first.text("a") == "b"
    with pytest.raises(TaskError, match=r"a.jsonl, line 3: the field 'a' is int, not text: the fields are a"):
        second.text("a")
    with pytest.raises(TaskError, match=r"a.jsonl, line 1: the field 'c' is missing: the fields are a"):
        first.text("c")
    path.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(TaskError, match=r"a.jsonl, line 2: a JSON list, not an object"):
        file_rows(path)
    path.write_text("")
    with pytest.raises(TaskError, match="the file is empty"):
        file_rows(path)
    (tmp_path / "b.json").write_text(json.dumps([{"a": "x"}]))
    assert file_rows(tmp_path / "b.json")[0].place.endswith("b.json, line 1")
