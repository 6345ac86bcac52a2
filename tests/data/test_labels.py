"""Labels are exactly the assistant's words and end token, for every kind of tokenizer and template."""

import copy

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from greats_jax.data import (
    BadRecord,
    Conversation,
    Encoder,
    Message,
    PlainText,
    PromptCompletion,
    Renderer,
    Template,
    render,
)
from greats_jax.errors import DataError

# Blanks, line ends, merges across boundaries, several bytes a character, characters that compose under NFC.
TEXTS = st.text(st.sampled_from("ab the.\n\t:['e\u0301é🤗日1"), min_size=0, max_size=12)
SAID = TEXTS.filter(str.strip)
BYTE_LEVEL = ["trimmed", "untrimmed"]
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def conversations(draw, system: bool = True):
    messages = [Message("system", draw(SAID))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [Message("user", draw(TEXTS)), Message("assistant", draw(SAID))]
    return Conversation(tuple(messages))


def encode(tokenizer, record, template: Template = "auto", max_length=10_000):
    return Encoder(tokenizer, max_length).encode([Renderer(tokenizer, template).render(record)])[0]


def labels(tokenizer, record, template: Template = "auto"):
    """The text of every run of labels."""
    encoded = encode(tokenizer, record, template)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], encoded.label_mask, [False]]).astype(int)))
    runs = zip(edges[::2], edges[1::2], strict=True)
    return [tokenizer.decode(encoded.input_ids[start:end]) for start, end in runs]


def said(record):
    return [message.content for message in record.messages if message.role == "assistant"]


@pytest.mark.parametrize("backend", BYTE_LEVEL)
@FEW
@given(record=conversations())
def test_chatml_labels_are_the_words_and_the_end_token(make_tokenizer, backend, record):
    assert labels(make_tokenizer(backend), record) == [f"{words}<|im_end|>" for words in said(record)]


@pytest.mark.parametrize("backend", BYTE_LEVEL)
@FEW
@given(record=conversations(system=False))
def test_template_without_generation_prompt(make_tokenizer, backend, record):
    assert labels(make_tokenizer(backend, "inst"), record) == [f" {words}</s>" for words in said(record)]


@FEW
@given(record=conversations())
def test_headings_are_no_labels(make_tokenizer, record):
    assert labels(make_tokenizer("trimmed", "headings"), record) == [f" {words.strip()}\n" for words in said(record)]


@pytest.mark.parametrize("backend", BYTE_LEVEL)
@FEW
@given(record=conversations())
def test_tulu_labels_have_the_line_end_after_the_end_token(make_tokenizer, backend, record):
    assert labels(make_tokenizer(backend, "none"), record) == [f"{words.strip()}</s>\n" for words in said(record)]


@FEW
@given(prompt=TEXTS, completion=SAID)
def test_prompt_completion(make_tokenizer, prompt, completion):
    tokenizer = make_tokenizer("trimmed", "none")
    joined = prompt and not prompt[-1].isspace() and not completion[0].isspace()
    found = labels(tokenizer, PromptCompletion(prompt, completion))
    if prompt:
        assert found == [(" " if joined else "") + completion + "</s>"]
    else:  # nothing predicts the first token
        ids = encode(tokenizer, PromptCompletion(prompt, completion)).input_ids
        assert found == [tokenizer.decode(ids[1:])]


@FEW
@given(record=conversations())
def test_composed_characters_keep_their_side_of_the_boundary(make_tokenizer, record):
    import unicodedata

    tokenizer = make_tokenizer("nfc")
    expected = [unicodedata.normalize("NFC", words) + "<|im_end|>" for words in said(record)]
    assert labels(tokenizer, record) == expected


@FEW
@given(prompt=SAID, completion=SAID)
@example(prompt="the ", completion=" the")  # two blanks are one token
@example(prompt="the", completion="  the")
def test_boundary_where_every_text_starts_with_a_blank(make_tokenizer, prompt, completion):
    tokenizer = make_tokenizer("blank_first", "none")
    rendered = render(PromptCompletion(prompt, completion), tokenizer)
    encoded = Encoder(tokenizer, 10_000).encode([rendered])[0]
    first = int(np.argmax(encoded.label_mask))
    start = rendered.spans[0][0]
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert encoded.label_mask[first:].all()
    assert tokenizer.decode(encoded.input_ids[1:first]) == rendered.text[:start]
    # The words after the boundary have no blank of their own: all of the text is there, and nothing else.
    assert tokenizer.decode(encoded.input_ids[1:-1]) == rendered.text.removesuffix("</s>")


def test_text_is_tokenized_whole_where_no_token_straddles(tokenizer):
    record = Conversation((Message("user", "What is the answer?"), Message("assistant", "the answer is: B")))
    whole = tokenizer(Renderer(tokenizer).render(record).text, add_special_tokens=False)["input_ids"]
    assert encode(tokenizer, record).input_ids.tolist() == whole


def test_straddling_token_is_cut(make_tokenizer):
    tokenizer = make_tokenizer("trimmed", "none")
    text = "user \n\n\n"
    assert tokenizer.tokenize("\n\n") == ["ĊĊ"]
    assert labels(tokenizer, PromptCompletion("the end.\n", "\nthe answer")) == ["\nthe answer</s>"]
    assert labels(tokenizer, PromptCompletion(text, " 🤗")) == [" 🤗</s>"]


@pytest.mark.parametrize("backend", ["trimmed", "untrimmed", "nfc", "blank_first"])
@FEW
@given(record=conversations(), max_length=st.integers(1, 60))
def test_truncation_keeps_the_start(make_tokenizer, backend, record, max_length):
    tokenizer = make_tokenizer(backend)
    full, short = encode(tokenizer, record), encode(tokenizer, record, max_length=max_length)
    assert len(short.input_ids) == len(short.label_mask) == min(max_length, len(full.input_ids))
    assert short.truncated == (len(full.input_ids) > max_length)
    np.testing.assert_array_equal(short.input_ids, full.input_ids[:max_length])
    np.testing.assert_array_equal(short.label_mask, full.label_mask[:max_length])
    assert not short.label_mask[0]


def test_plain_text_labels_all_but_the_first(make_tokenizer):
    for backend, first in ("trimmed", None), ("blank_first", "<s>"):
        tokenizer = make_tokenizer(backend, "none")
        encoded = encode(tokenizer, PlainText("the cat sat"))
        assert encoded.label_mask.tolist() == [False] + [True] * (len(encoded.input_ids) - 1)
        assert encoded.input_ids[-1] == tokenizer.eos_token_id
        assert (tokenizer.convert_ids_to_tokens(int(encoded.input_ids[0])) == first) == (first is not None)


@pytest.mark.parametrize("text", ["", " \n"])
def test_blank_records_have_no_labels(tokenizer, text):
    assert not encode(tokenizer, PlainText(text)).label_mask.any()
    assert not encode(tokenizer, PromptCompletion("a", text)).label_mask.any()
    for template in "chat", "tulu":
        record = Conversation((Message("user", "a"), Message("assistant", text)))
        assert not encode(tokenizer, record, template).label_mask.any()


def test_conversation_that_starts_with_the_assistant(make_tokenizer):
    record = Conversation((Message("assistant", "the cat"), Message("user", "a"), Message("assistant", "the dog")))
    assert labels(make_tokenizer(), record) == ["the cat<|im_end|>", "the dog<|im_end|>"]


def test_default_system_turn_is_no_label(tokenizer):
    record = Conversation((Message("user", "a"), Message("assistant", "b")))
    rendered = Renderer(tokenizer).render(record)
    assert rendered.text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user")
    assert labels(tokenizer, record) == ["b<|im_end|>"]


def test_bos_of_the_template_is_not_doubled(make_tokenizer):
    tokenizer = make_tokenizer("blank_first", "inst")
    ids = encode(tokenizer, Conversation((Message("user", "a"), Message("assistant", "b")))).input_ids
    assert (ids == tokenizer.bos_token_id).sum() == 1
    ids = encode(tokenizer, PlainText("<s>the cat")).input_ids
    assert (ids == tokenizer.bos_token_id).sum() == 1


def test_template_that_rewrites_earlier_turns_is_refused(make_tokenizer):
    tokenizer = make_tokenizer("trimmed", "last_turn_only")
    turn = (Message("user", "a"), Message("assistant", "b"))
    assert labels(tokenizer, Conversation(turn)) == ["b<|im_end|>"]
    with pytest.raises(BadRecord, match=r"cannot be rendered turn by turn.*tulu"):
        encode(tokenizer, Conversation(turn * 2))
    assert labels(tokenizer, Conversation(turn * 2), "tulu") == ["b</s>\n", "b</s>\n"]


def test_template_that_refuses_a_role(make_tokenizer):
    record = Conversation((Message("system", "a"), Message("user", "a"), Message("assistant", "b")))
    with pytest.raises(BadRecord, match="refuses this conversation: Only user and assistant roles"):
        Renderer(make_tokenizer("trimmed", "inst")).render(record)
    with pytest.raises(BadRecord, match=r"messages\[0\] has the role 'tool'"):
        Renderer(make_tokenizer(), "tulu").render(Conversation((Message("tool", "a"),)))


def test_tokenizers_that_cannot_be_used(make_tokenizer):
    with pytest.raises(DataError, match="no chat template: set it to tulu"):
        Renderer(make_tokenizer("trimmed", "none"), "chat")
    with pytest.raises(DataError, match="fast tokenizer"):
        Encoder(object(), 8)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("template", ["chat", "tulu"])
def test_only_the_answer_of_a_question_is_a_label(tokenizer, template):
    renderer = Renderer(tokenizer, template)
    encoded = Encoder(tokenizer, 200).encode([renderer.render_question("What?", "The answer is:", " B")])[0]
    assert tokenizer.decode(encoded.input_ids[encoded.label_mask]) == " B"
    assert encoded.label_mask[-1]
    end = "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nThe answer is: B"
    if template == "tulu":
        end = "<|user|>\nWhat?\n<|assistant|>\nThe answer is: B"
    assert tokenizer.decode(encoded.input_ids).endswith(end)


@pytest.mark.parametrize(
    ("template", "ends"),
    [
        ("chatml", {"<|im_end|>", "<|im_start|>"}),
        ("inst", {"</s>"}),  # its [INST] is no token of its own
        ("headings", {"</s>"}),
        ("last_turn_only", {"<|im_end|>", "</s>"}),
        ("none", {"</s>"}),
    ],
)
def test_tokens_that_end_the_assistants_turn(make_tokenizer, template, ends):
    tokenizer = make_tokenizer("trimmed", template)
    assert Renderer(tokenizer).end_tokens() == set(tokenizer.convert_tokens_to_ids(sorted(ends)))


def test_a_turn_may_end_with_another_token_than_a_text(make_tokenizer):
    tokenizer = copy.deepcopy(make_tokenizer("trimmed", "chatml"))
    tokenizer.eos_token = "</s>"
    assert set(tokenizer.convert_ids_to_tokens(Renderer(tokenizer).end_tokens())) == {
        "</s>", "<|im_end|>", "<|im_start|>",
    }  # fmt: skip
    # The end of a label need not be special; what is not special and stands in the next turn ends nothing.
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}\n{{ m.content }}\n<stop>\n{% endfor %}"
    tokenizer.add_tokens(["<stop>", "user", "\n\n"])
    assert set(tokenizer.convert_ids_to_tokens(Renderer(tokenizer).end_tokens())) == {"</s>", "<stop>"}
