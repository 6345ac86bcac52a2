"""Real tokenizers on real records; skipped where GREATS_SHARED is unset."""

import gzip
import json

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from greats_jax.data import Conversation, DataConfig, Encoder, Renderer, SourceConfig, build_pool, parse_record

MODELS = {"smollm2": "smollm2-135m-instruct", "stories": "stories260k"}


@pytest.fixture(scope="module")
def tokenizers(shared):
    return {
        name: PreTrainedTokenizerFast.from_pretrained(str(shared / "data" / "models" / folder))
        for name, folder in MODELS.items()
    }


@pytest.mark.parametrize("file", ["dolly", "cot", "p3", "superni", "self_instruct_human", "gsm8k_train"])
@pytest.mark.parametrize("template", ["chat", "tulu"])
def test_labels_of_real_records(shared, tokenizers, file, template):
    tokenizer = tokenizers["smollm2"]
    with gzip.open(shared / "data" / "train" / f"{file}.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [parse_record(json.loads(line)) for line, _ in zip(lines, range(300), strict=False)]
    renderer = Renderer(tokenizer, template)
    encoded = Encoder(tokenizer, 10**6).encode([renderer.render(record) for record in records])
    for record, tokens in zip(records, encoded, strict=True):
        assert isinstance(record, Conversation)
        answer = record.messages[-1].content
        expected = f"{answer}<|im_end|>" if template == "chat" else f"{answer.strip()}<|im_end|>\n"
        assert tokenizer.decode(tokens.input_ids[tokens.label_mask]) == expected
        assert np.diff(tokens.label_mask.astype(int)).clip(0).sum() == 1  # one run of labels


def test_tokens_are_those_of_the_tokenizer(shared, tokenizers):
    path = str(shared / "data" / "train" / "self_instruct_human.jsonl.gz")
    for name, add_special in ("smollm2", False), ("stories", True):
        tokenizer = tokenizers[name]
        config = DataConfig(sources=(SourceConfig(path),), max_length=10**6)
        pool = build_pool(config, tokenizer)
        renderer = Renderer(tokenizer)
        same = 0
        for index in range(len(pool)):
            text = renderer.render(parse_record(pool.records(index))).text
            same += tokenizer(text, add_special_tokens=add_special)["input_ids"] == pool[index].input_ids.tolist()
        assert len(pool) == 427
        assert same == len(pool)  # no token of these straddles a boundary, so none is cut


def test_default_system_turn_of_smollm2(tokenizers):
    tokenizer = tokenizers["smollm2"]
    rendered = Renderer(tokenizer).render(parse_record({"instruction": "hi", "output": "yo"}))
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    assert rendered.text == f"{system}<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>\n"
    assert [rendered.text[start:end] for start, end in rendered.spans] == ["yo<|im_end|>"]


@pytest.mark.slow
def test_whole_pool(shared, tokenizers):
    """All 88 thousand records: counts add up, and every kept example has a label within its length."""
    pool = build_pool(DataConfig(sources=(SourceConfig(str(shared / "data/train/*.jsonl.gz")),)), tokenizers["smollm2"])
    assert sum(count["read"] for count in pool.counts.values()) == 87_757
    assert sum(count["kept"] for count in pool.counts.values()) == len(pool)
    for count in pool.counts.values():
        assert count["read"] == count["kept"] + count.get("no_labels", 0) + count.get("cut_away", 0)
    assert all(example.label_mask[1:].any() for example in pool.examples)
    assert pool.lengths.max() == 512
