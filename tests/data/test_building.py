"""The pool: what is kept, what is dropped and counted, and what stops the building."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from greats_jax.data import DataConfig, SourceConfig, build_pool
from greats_jax.errors import DataError


def chat(question="the cat", answer="the dog", **fields):
    return {**fields, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def write(tmp_path):
    def write(name, *rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SourceConfig(str(path))

    return write


def fault(config, tokenizer) -> str:
    with pytest.raises(DataError) as caught:
        build_pool(config, tokenizer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pool_keeps_order_names_and_records(write, tokenizer):
    first = write("first.jsonl", chat(id="x"), {"text": "the cat sat"}, chat(id="x"))
    second = write("second.jsonl", chat(id=5, extra=[1]))
    pool = build_pool(DataConfig(sources=(first, second)), tokenizer)
    assert len(pool) == 4
    assert [example.id for example in pool.examples] == ["x", "first-2", "x#2", "5"]
    assert [example.source for example in pool.examples] == ["first"] * 3 + ["second"]
    assert pool.sources == ("first", "second")
    assert pool.source_indices.tolist() == pool.components.tolist() == [0, 0, 0, 1]
    assert pool.records(3) == chat(id=5, extra=[1])
    assert pool.weights is None
    assert pool.counts == {
        "first": {"read": 3, "kept": 3, "truncated": 0},
        "second": {"read": 1, "kept": 1, "truncated": 0},
    }
    assert pool.pad_id == tokenizer.pad_token_id
    example = pool[0]
    assert example.input_ids.dtype == np.int32
    assert tokenizer.decode(example.input_ids[example.label_mask]) == "the dog<|im_end|>"
    assert pool.lengths.tolist() == [len(example.input_ids) for example in pool.examples]


def test_examples_without_labels_are_dropped_and_counted(write, tokenizer):
    source = write(
        "x.jsonl", chat(), chat(answer=" "), chat(question="the cat " * 200), chat(answer="the cat " * 200),
        {"messages": [{"role": "user", "content": "hi"}]},
    )  # fmt: skip
    pool = build_pool(DataConfig(sources=(source,), max_length=100), tokenizer)
    assert pool.counts == {"x": {"read": 5, "kept": 2, "truncated": 1, "no_labels": 2, "cut_away": 1}}
    assert pool.lengths.tolist() == [pool.lengths[0], 100]


def learnable(config, tokenizer) -> bool:
    """Whether any record of the only source has a word of the assistant within the longest example."""
    with open(config.sources[0].path) as file:
        rows = [json.loads(line)["messages"] for line in file]
    starts = [
        (len(tokenizer.apply_chat_template(row[:1], add_generation_prompt=True)["input_ids"]), row[1]["content"])
        for row in rows
    ]
    return any(start < config.max_length and answer for start, answer in starts)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=6),
    max_length=st.integers(2, 120),
)
def test_no_example_is_left_without_labels(write, tokenizer, lengths, max_length):
    rows = [chat("a " * asked + "b", "the " * said) for asked, said in lengths]
    config = DataConfig(sources=(write("x.jsonl", *rows),), max_length=max_length)
    if not learnable(config, tokenizer):
        assert "the training pool is empty" in fault(config, tokenizer)
        return
    pool = build_pool(config, tokenizer)
    for example in pool.examples:
        assert example.label_mask.any()
        assert not example.label_mask[0]
        assert len(example.input_ids) == len(example.label_mask) <= max_length
    count = pool.counts["x"]
    assert count["kept"] == len(pool)
    assert count["read"] == len(rows) == count["kept"] + count.get("no_labels", 0) + count.get("cut_away", 0)


def test_percentage_is_a_seeded_share_of_each_source(write, tokenizer):
    sources = tuple(write(f"{name}.jsonl", *(chat(id=f"{name}{i}") for i in range(40))) for name in "ab")

    def ids(percentage, seed=42):
        pool = build_pool(DataConfig(sources=sources, percentage=percentage, seed=seed), tokenizer)
        return [example.id for example in pool.examples], pool

    chosen, pool = ids(25)
    assert len(chosen) == 20
    assert pool.counts["a"] == {"read": 40, "not_sampled": 30, "kept": 10, "truncated": 0}
    assert chosen == ids(25)[0] != ids(25, seed=1)[0]
    assert {name[1:] for name in chosen[:10]} != {name[1:] for name in chosen[10:]}
    assert set(chosen) < set(ids(50)[0])  # a larger share contains the smaller one
    assert len(ids(0.01)[0]) == 2  # never less than one of each
    assert len(ids(100)[0]) == 80


def test_weights_are_kept(write, tokenizer):
    sources = (write("a.jsonl", chat()), write("b.jsonl", chat()))
    weighted = tuple(SourceConfig(source.path, weight=weight) for source, weight in zip(sources, (3, 1), strict=True))
    assert build_pool(DataConfig(sources=weighted), tokenizer).weights == (3.0, 1.0)


def test_without(write, tokenizer):
    sources = (write("a.jsonl", chat(id="1"), chat(id="2")), write("b.jsonl", chat(id="3")))
    pool = build_pool(DataConfig(sources=sources), tokenizer)
    left = pool.without({"1", "3", "unknown"}, "taken")
    assert [example.id for example in left.examples] == ["2"]
    assert left.counts["a"] == {"read": 2, "kept": 1, "truncated": 0, "taken": 1}
    assert left.records(0)["id"] == "2"
    assert left.source_indices.tolist() == left.components.tolist() == [0]
    assert len(pool) == 3
    assert pool.counts["a"]["kept"] == 2


def test_bad_records_stop_or_are_skipped(write, make_tokenizer):
    system = {"messages": [{"role": "system", "content": "x"}, *chat()["messages"]]}
    source = write("x.jsonl", chat(), {"no": 1}, system)
    tokenizer = make_tokenizer("trimmed", "inst")
    pool = build_pool(DataConfig(sources=(source,), on_bad_record="skip"), tokenizer)
    assert pool.counts == {"x": {"read": 3, "bad": 2, "kept": 1, "truncated": 0}}
    assert "x.jsonl, line 2: its fields (no)" in fault(DataConfig(sources=(source,)), tokenizer)
    refused = write("y.jsonl", chat(), system)
    message = fault(DataConfig(sources=(refused,)), tokenizer)
    assert "y.jsonl, line 2: the chat template refuses this conversation" in message


def test_empty_pools(write, tokenizer):
    assert "data.sources is empty" in fault(DataConfig(), tokenizer)
    masked = write("x.jsonl", chat(answer=""), chat(answer=" "))
    message = fault(DataConfig(sources=(masked,)), tokenizer)
    assert "the training pool is empty: of 2 records read, 2 have no words of the assistant to learn" in message
    long = write("y.jsonl", chat(question="the cat " * 99))
    message = fault(DataConfig(sources=(long,), max_length=50), tokenizer)
    assert "1 have them only beyond data.max_length" in message
    bad = write("z.jsonl", {"no": 1})
    message = fault(DataConfig(sources=(bad,), on_bad_record="skip"), tokenizer)
    assert "1 could not be used" in message
    assert "z.jsonl, line 1" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": True}, "packing joins several examples in one row"),
        ({"template": "llama"}, "data.template is 'llama', but must be one of auto, chat, tulu"),
        ({"on_bad_record": "ignore"}, "must be one of stop, skip"),
        ({"max_length": 1}, "at least 2 tokens"),
        ({"buckets": 0}, "must be 1 to 4"),
        ({"buckets": 5}, "must be 1 to 4"),
        ({"percentage": 0}, "more than 0 and at most 100"),
        ({"percentage": 101}, "more than 0 and at most 100"),
        ({"percentage": float("nan")}, "more than 0 and at most 100"),
        ({"seed": -1}, "must not be negative"),
        ({"sources": ("a.jsonl",)}, "write SourceConfig"),
        ({"sources": (SourceConfig("a", weight=1), SourceConfig("b"))}, "data source b has no weight"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(DataError, match=message):
        DataConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, "without a path"),
        ({"path": "x", "format": "xml"}, "data source x: format is 'xml', but must be one of auto, messages"),
        ({"path": "x", "weight": 0}, "must be a positive number"),
        ({"path": "x", "weight": float("inf")}, "must be a positive number"),
    ],
)
def test_sources_that_cannot_work(options, message):
    with pytest.raises(DataError, match=message):
        SourceConfig(**options)


def test_a_long_text_becomes_pieces_that_lose_nothing(tmp_path, tokenizer):
    text = "the cat sat on the mat . " * 9
    (tmp_path / "book.txt").write_text(text)
    pool = build_pool(DataConfig(sources=(SourceConfig(str(tmp_path / "book.txt")),), max_length=16), tokenizer)
    whole = build_pool(DataConfig(sources=(SourceConfig(str(tmp_path / "book.txt")),), max_length=4096), tokenizer)
    assert len(whole) == 1
    assert np.concatenate([example.input_ids for example in pool.examples]).tolist() == whole[0].input_ids.tolist()
    assert [len(example.input_ids) for example in pool.examples[:-1]] == [16] * (len(pool) - 1)
    assert all(not example.label_mask[0] and example.label_mask[1:].all() for example in pool.examples)
    assert [example.id for example in pool.examples[:2]] == ["book-1", "book-1#2"]
    assert "".join(pool.records(index)["text"] for index in range(len(pool))).split() == text.split()
    assert pool.counts == {"book": {"read": 1, "kept": 1, "truncated": 0}}


def test_a_long_text_can_lose_its_end_instead(write, tokenizer):
    source = write("texts.jsonl", {"text": "the cat sat " * 30})
    pool = build_pool(DataConfig(sources=(source,), max_length=16, long_text="truncate"), tokenizer)
    assert [len(example.input_ids) for example in pool.examples] == [16]
    assert pool.counts["texts"]["truncated"] == 1


def test_a_folder_of_data_may_hold_a_licence(write, tmp_path, tokenizer):
    write("records.jsonl", chat())
    (tmp_path / "LICENSE.txt").write_text("do as you like")
    assert build_pool(DataConfig(sources=(SourceConfig(str(tmp_path)),)), tokenizer).sources == ("records",)
    (tmp_path / "records.jsonl").unlink()
    assert build_pool(DataConfig(sources=(SourceConfig(str(tmp_path)),)), tokenizer).sources == ("LICENSE",)
