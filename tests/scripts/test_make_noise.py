"""Spoilt records: as many as asked for, spoilt in the way that is said, and the others untouched."""

import json

import pytest

from greats_jax.data import SourceConfig, load_records
from greats_jax.errors import DataError


@pytest.fixture(scope="module")
def noise(load_program):
    return load_program("scripts/make_noise.py")


@pytest.fixture
def load(tmp_path):
    def load(*rows):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [item.record for item in load_records(SourceConfig(str(tmp_path / "rows.jsonl"))).records]

    return load


def ask(number):
    return {"instruction": f"question {number}", "output": f"answer {number}"}


def test_answers_of_the_spoilt_part_change_hands_and_no_other(noise, load):
    rows = noise.spoil(load(*map(ask, range(40))), 0.25, seed=1)
    pairs = [(row["kind"], *(turn["content"] for turn in row["messages"])) for row in rows]
    assert [question for _, question, _ in pairs] == [f"question {i}" for i in range(40)]
    spoilt = {i: answer for i, (kind, _, answer) in enumerate(pairs) if kind == "spoilt"}
    assert len(spoilt) == 10
    assert all(answer != f"answer {i}" for i, answer in spoilt.items())
    assert sorted(spoilt.values()) == sorted(f"answer {i}" for i in spoilt)
    assert all(answer == f"answer {i}" for i, (_, _, answer) in enumerate(pairs) if i not in spoilt)


def test_the_draw_follows_from_the_seed(noise, load):
    records = load(*map(ask, range(20)))
    assert noise.spoil(records, 0.5, seed=1) == noise.spoil(records, 0.5, seed=1)
    assert noise.spoil(records, 0.5, seed=1) != noise.spoil(records, 0.5, seed=2)


def test_spoilt_text_keeps_its_words(noise, load):
    words = [
        "a",
        "long",
        "text",
        "of",
        "many",
        "different",
        "words",
        "that",
        "will",
        "not",
        "stay",
        "in",
        "their",
        "order",
    ]
    (row,) = noise.spoil(load({"text": " ".join(words)}), 1.0, seed=0)
    assert row["kind"] == "spoilt"
    assert sorted(row["text"].split()) == sorted(words)
    assert row["text"].split() != words


def test_longer_conversations_are_refused(noise, load):
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(DataError, match="one question and one answer"):
        noise.spoil(load({"messages": turns}, {"messages": turns}), 1.0, seed=0)


def test_the_program_writes_what_can_be_read_again(noise, tmp_path, monkeypatch, capsys):
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(ask(i)) + "\n" for i in range(30)))
    monkeypatch.setattr(
        "sys.argv", ["make_noise", str(tmp_path / "in.jsonl"), str(tmp_path / "out.jsonl"), "--limit", "20"]
    )
    noise.main()
    assert "20 records, 10 of them spoilt" in capsys.readouterr().out
    loaded = load_records(SourceConfig(str(tmp_path / "out.jsonl"), label_field="kind"))
    assert sorted({item.source for item in loaded.records}) == ["sound", "spoilt"]
