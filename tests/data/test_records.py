"""Every kind of file, every record format, and every fault with file, line and reason."""

import csv
import gzip
import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from greats_jax.data import (
    BadRecord,
    Conversation,
    Message,
    PlainText,
    PromptCompletion,
    SourceConfig,
    load_records,
    parse_record,
)
from greats_jax.errors import DataError

ASKED = Conversation((Message("user", "hi"), Message("assistant", "yo")))
MESSAGES = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
ROWS = [{"prompt": 'a, "b"\nc', "completion": f"number {number} é"} for number in range(3)]


def read(path, **options):
    return load_records(SourceConfig(str(path), **options))


def fault(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (MESSAGES, ASKED),
        ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}, ASKED),
        ({"messages": json.dumps(MESSAGES["messages"])}, ASKED),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
            Conversation(ASKED.messages[:1]),
        ),
        ({"instruction": "hi", "output": "yo"}, ASKED),
        ({"instruction": "hi", "input": " ", "output": "yo", "text": "x"}, ASKED),
        ({"question": "hi", "answer": "yo"}, ASKED),
        (
            {"instruction": "hi", "context": "there", "response": "yo"},
            Conversation((Message("user", "hi\n\nthere"), Message("assistant", "yo"))),
        ),
        ({"prompt": "hi", "completion": "yo", "messages": None}, PromptCompletion("hi", "yo")),
        ({"prompt": MESSAGES["messages"][:1], "completion": MESSAGES["messages"][1:]}, ASKED),
        ({"text": "hi"}, PlainText("hi")),
    ],
)
def test_formats_are_recognised(value, expected):
    assert parse_record(value) == expected


def test_named_format_wins():
    value = {"text": "hi", "prompt": "a", "completion": "b"}
    assert parse_record(value) == PromptCompletion("a", "b")
    assert parse_record(value, "text") == PlainText("hi")


@pytest.mark.parametrize(
    ("value", "format", "reason"),
    [
        ({"a": 1, "b": 2}, "auto", r"fields \(a, b\) fit no known format"),
        ({}, "auto", r"fields \(none\)"),
        ({"a": 1}, "messages", "no field 'messages'"),
        ({"a": 1}, "text", "no field 'text'"),
        ({"instruction": "x"}, "alpaca", "no field 'output' or 'response' or 'answer'"),
        ({"prompt": "x"}, "prompt_completion", "no field 'completion'"),
        ({"text": 3}, "auto", "field 'text' is a number, not text"),
        ({"messages": []}, "auto", "an empty list"),
        ({"messages": {"role": "user"}}, "auto", "is an object, not a list"),
        ({"messages": "hello"}, "auto", "no JSON list"),
        ({"messages": ["hello"]}, "auto", r"messages\[0\] is text"),
        ({"messages": [{"content": "x"}]}, "auto", r"messages\[0\] has no role"),
        ({"messages": [{"role": "user"}]}, "auto", r"content of messages\[0\] \(user\) is null"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "auto", "part of type 'image'"),
    ],
)
def test_broken_records(value, format, reason):
    with pytest.raises(BadRecord, match=reason):
        parse_record(value, format)


def write(path, rows):
    name = path.name.removesuffix(".gz")
    plain = path.with_name(name)
    if name.endswith(".jsonl"):
        write_lines(plain, *rows)
    elif name.endswith(".json"):
        plain.write_text(json.dumps(rows, indent=1))
    elif name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
    else:
        with plain.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    if path != plain:
        path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
        plain.unlink()
    return path


KINDS = ["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "json.gz", "csv.gz", "parquet.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(tmp_path, kind):
    loaded = read(write(tmp_path / f"some.data.{kind}", ROWS))
    assert [item.record for item in loaded.records] == [PromptCompletion(*row.values()) for row in ROWS]
    assert [item.original for item in loaded.records] == ROWS
    assert {item.source for item in loaded.records} == {"some.data"}
    if kind.startswith("jsonl"):
        assert [item.line for item in loaded.records] == [1, 2, 3]


def test_folder_and_pattern(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "a.jsonl", ROWS[:1])
    write(tmp_path / "deep" / "b.csv.gz", ROWS)
    (tmp_path / "notes.md").write_text("not data")
    assert [item.source for item in read(tmp_path).records] == ["a", "b", "b", "b"]
    assert [item.source for item in read(tmp_path / "*.jsonl").records] == ["a"]
    assert {item.source for item in read(tmp_path, name="mine").records} == {"mine"}


def test_label_field_names_the_source(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", {"text": "a", "kind": "one"}, {"text": "b", "kind": 2})
    assert [item.source for item in read(path, label_field="kind").records] == ["one", "2"]
    assert "line 1: no field 'skill'" in fault(path, label_field="skill")


@pytest.mark.parametrize("content", ['{"text": "a"}\n{"text": "b"}', '{"data": [{"text": "a"}, {"text": "b"}]}'])
def test_json_by_another_shape(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    assert [item.record for item in read(tmp_path / "x.json").records] == [PlainText("a"), PlainText("b")]
    (tmp_path / "one.json").write_text(json.dumps(MESSAGES))
    assert [item.record for item in read(tmp_path / "one.json").records] == [ASKED]


def test_byte_order_mark(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + b'{"text": "a"}\r\n\n')
    (tmp_path / "y.csv").write_bytes(b"\xef\xbb\xbftext\r\na\r\n")
    assert [item.record for item in read(tmp_path).records] == [PlainText("a"), PlainText("a")]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", b"", "the file is empty"),
        ("x.jsonl.gz", gzip.compress(b" \n", mtime=0), "the file is empty"),
        ("x.jsonl", b'{"text": "a"}\n{"text": ', "x.jsonl, line 2: not valid JSON"),
        ("x.jsonl", b'{"text": "a"}\n\n[1]\n', "x.jsonl, line 3: a JSON list, not an object"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "x.jsonl, line 2: not text in UTF-8"),
        ("x.jsonl", b'{"text": 1}\n', "x.jsonl, line 1: field 'text' is a number, not text"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl, line 1: not valid JSON"),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-12], "damaged or cut-off gzip file"),
        ("x.jsonl.gz", b'{"text": "a"}\n', "damaged or cut-off gzip file"),
        ("x.json", b'[{"text": "a"},\n {]', "x.json, line 2: not valid JSON"),
        ("x.json", b"[]", "holds no record"),
        ("x.csv", b"prompt,completion\n", "holds no record"),
        ("x.json", b"3", "holds a JSON int: expected a list of records"),
        ("x.json", b"[" * 100_000, "nested too deeply"),
        ("x.json", b'[{"text": "\xff"}]', "x.json, line 1: not text in UTF-8"),
        ("x.csv", b"text,\na,b\n", "x.csv, line 1: the first row must name the columns"),
        ("x.csv", b"prompt,completion\na,b\nonly one\n", "x.csv, line 3: 1 cells, but the first row names 2 columns"),
        ("x.csv", b"just words without columns\nmore\n", "fit no known format"),
        ("x.csv", b'text\n"a"b\n', "x.csv, line 2: not valid CSV"),
        ("x.parquet", b"PAR1 nonsense", "damaged Parquet file"),
        ("x.xml", b"<a/>", "unknown kind of file: expected .jsonl"),
    ],
)
def test_faults_of_files(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert expected in fault(tmp_path / name)


def test_missing_files(tmp_path):
    assert "no such file or folder" in fault(tmp_path / "none.jsonl")
    assert "no such file or folder" in fault("./some/folder")
    assert "no file fits the pattern" in fault(tmp_path / "*.jsonl")
    assert "holds no data file" in fault(tmp_path)


def test_bad_records_are_skipped_and_counted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"no": 1}\nnonsense\n{"text": "\xff"}\n{"text": "b"}\n')
    loaded = load_records(SourceConfig(str(path)), "skip")
    assert [item.line for item in loaded.records] == [1, 5]
    assert loaded.skipped == {"x": 3}
    assert loaded.first_fault is not None
    assert "x.jsonl, line 2: its fields (no)" in loaded.first_fault
    assert "set data.on_bad_record to skip" in fault(path)


def test_hub_data_set(monkeypatch):
    asked = []

    def load_dataset(name, configuration, split):
        asked.append((name, configuration, split))
        return datasets.Dataset.from_list([MESSAGES, MESSAGES])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    loaded = read("owner/some-set:main", split="train[:2]")
    assert asked == [("owner/some-set", "main", "train[:2]")]
    assert [item.record for item in loaded.records] == [ASKED, ASKED]
    assert {(item.source, item.file) for item in loaded.records} == {("some-set", "owner/some-set:main")}


def test_hub_out_of_reach():
    # tests/conftest.py sets the offline switches of the hub's client: nothing is asked over the network.
    message = fault("owner/no-such-set")
    assert message.startswith("owner/no-such-set: neither a local file or folder nor a Hugging Face data set")
    assert "download it and give the path" in message
