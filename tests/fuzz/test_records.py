"""Data files and the records in them."""

import csv
import gzip
import io
import json

import pyarrow
import pytest
from fuzzing import ODD_TEXTS, bounded, examples, fuzz, mutated, texts, values
from hypothesis import strategies as st
from pyarrow import parquet

from greats_jax.data import DataConfig, SourceConfig, build_pool, load_records
from greats_jax.data.formats import BadRecord, parse_record
from greats_jax.data.rendering import Renderer
from greats_jax.errors import DataError

RECORDS = [
    {"messages": [{"role": "user", "content": "say red"}, {"role": "assistant", "content": "red é 🤗"}], "id": "a"},
    {"conversations": [{"from": "human", "value": "say"}, {"from": "gpt", "value": "blue"}]},
    {"instruction": "count", "input": "cats", "output": "three", "id": 7},
    {"prompt": "one", "completion": "two"},
    {"text": "a text of some words"},
]


def table(**settings) -> bytes:
    buffer = io.BytesIO()
    columns = {
        "id": pyarrow.array([1, 2, None]),
        "text": pyarrow.array(["red", "blué", "green"]),
        "messages": pyarrow.array([[{"role": "user", "content": "a"}], None, []]),
        "when": pyarrow.array([0, 1, 2], pyarrow.timestamp("s")),
    }
    parquet.write_table(pyarrow.table(columns), buffer, **settings)
    return buffer.getvalue()


def comma_separated() -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["instruction", "output"], ["say, red", 'a "word"'], ["x\ny", "z"]])
    return buffer.getvalue().encode()


FILES = {
    "a.jsonl": "".join(json.dumps(record) + "\n" for record in RECORDS).encode(),
    "a.json": json.dumps(RECORDS, ensure_ascii=False).encode(),
    "a.csv": comma_separated(),
    "a.jsonl.gz": gzip.compress(json.dumps(RECORDS[0]).encode()),
    "a.parquet": table(),
    "plain.parquet": table(compression="none", use_dictionary=False),
}


@examples
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_data_file_is_refused_or_read(name, examples, tmp_path):
    path = tmp_path / name

    def load(raw: bytes) -> None:
        path.write_bytes(raw)
        for policy in ("stop", "skip"):
            load_records(SourceConfig(str(path)), policy)

    fuzz(load, mutated(FILES[name]), examples)


@examples
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_any_bytes_are_refused_or_read(name, examples, tmp_path):
    path = tmp_path / name
    json_like = st.text('[]{}",:0123456789eE+-.\\ntrufalsdNI\n\r\0 ', max_size=60).map(str.encode)

    def load(raw: bytes) -> None:
        path.write_bytes(raw)
        load_records(SourceConfig(str(path)), "skip")

    fuzz(load, st.one_of(st.binary(max_size=200), json_like), examples)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{" * 100_000, '{"a":' * 100_000, "[" + "9" * 5000 + "]"], ids=lambda text: text[:2]
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_deep_nesting_and_endless_numbers_are_one_line(name, text, tmp_path):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match="not valid JSON"):
        load_records(SourceConfig(str(path)))


def test_messages_nested_deeply_in_a_cell_are_a_bad_record():
    with pytest.raises(BadRecord, match="no JSON list"):
        parse_record({"messages": "[" * 100_000})


turns = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.one_of(st.sampled_from(["user", "assistant", "system", "tool"]), texts),
                               "content": st.one_of(texts, values)}),
        st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt"]), "value": texts}),
        values,
    ),
    max_size=5,
)  # fmt: skip
records = st.one_of(
    st.fixed_dictionaries({"messages": turns}, optional={"id": values}),
    st.fixed_dictionaries({"prompt": st.one_of(texts, turns), "completion": st.one_of(texts, turns)}),
    st.fixed_dictionaries({"instruction": texts, "output": texts}, optional={"input": values, "id": values}),
    st.fixed_dictionaries({"text": st.one_of(texts, values)}, optional={"id": values, "kind": values}),
    st.dictionaries(texts, values, max_size=4),
)


@examples
@pytest.mark.parametrize("template", ["chatml", "inst", "headings", "last_turn_only", "none"])
def test_any_record_becomes_an_example_or_is_left_out(template, examples, tmp_path, make_tokenizer):
    tokenizer = make_tokenizer("trimmed", template)
    path = tmp_path / "records.jsonl"
    anchor = {"messages": [{"role": "user", "content": "say red"}, {"role": "assistant", "content": "red"}]}

    def build(found: list[dict]) -> None:
        lines = []
        for record in [anchor, *found]:
            try:
                lines.append(json.dumps(record))
            except ValueError:  # Python writes no integer of thousands of digits
                continue
        path.write_text("\n".join(lines))
        source = SourceConfig(str(path), label_field="kind" if len(found) == 3 else None)
        pool = build_pool(DataConfig(sources=(source,), max_length=64, on_bad_record="skip"), tokenizer)
        for example in pool.examples:
            assert example.label_mask.any()
            assert len(example.input_ids) == len(example.label_mask) <= 64
            # Both go into the run folder and to the terminal.
            assert example.id.encode("utf-8")
            assert example.source.encode("utf-8")

    fuzz(build, st.lists(records, min_size=1, max_size=4), examples)


@pytest.mark.parametrize("text", [text for text in ODD_TEXTS if text.strip()], ids=lambda text: ascii(text[:10]))
def test_odd_texts_are_learnt_or_named(text, tmp_path, make_tokenizer):
    """Only a text that is no text (half of a surrogate pair) is refused, and the refusal says which line it is on."""
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps({"prompt": "say", "completion": text}) + "\n")
    config = DataConfig(sources=(SourceConfig(str(path)),), max_length=64)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        with pytest.raises(DataError, match=r"odd.jsonl, line 1: .*surrogate"):
            build_pool(config, make_tokenizer())
    else:
        assert len(build_pool(config, make_tokenizer()).examples) == 1


def test_a_template_that_fails_like_a_program_is_a_bad_record(make_tokenizer, monkeypatch):
    tokenizer = make_tokenizer()
    renderer = Renderer(tokenizer)
    for body in ("{{ 1 / 0 }}", "{{ messages | map('upper') | sum }}", "{% for i in range(10**9) %}{% endfor %}"):
        monkeypatch.setattr(tokenizer, "chat_template", body)
        with pytest.raises(BadRecord, match="chat template"):
            renderer.render(parse_record(RECORDS[0]))


def test_a_conversation_without_end_is_a_bad_record(make_tokenizer):
    """Rendered turn by turn, this one would take minutes."""
    endless = [{"role": ("user", "assistant")[turn % 2], "content": "say"} for turn in range(20_000)]
    with bounded(), pytest.raises(BadRecord, match="20000 turns"):
        Renderer(make_tokenizer()).render(parse_record({"messages": endless}))


def test_a_question_that_cannot_be_asked_is_an_error_of_ours(make_tokenizer):
    with pytest.raises(DataError, match="surrogate"):
        Renderer(make_tokenizer()).render_question("say \udcff", "", "")
    renderer = Renderer(make_tokenizer("trimmed", "inst"))
    with pytest.raises(DataError, match="Only user and assistant roles"):
        renderer.render(parse_record({"messages": [{"role": "system", "content": "a"}] * 2}))
