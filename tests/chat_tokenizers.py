"""Tiny tokenizers of the kinds in use, trained here, and chat templates of the kinds in use.

A plugin of pytest, so that every folder of tests has the fixture.
"""

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "<|user|>\nWhat is the answer?\n<|assistant|>\nThe answer is: B\n",
    "user\n\nassistant\n\nsystem\n\n  two blanks, three   blanks\n\n\nthe end.\n",
    "### User: hello there\n### Assistant: hello, the answer is 12345.\n",
    "the cat sat on the mat and the dog sat on the cat; naïve café 🤗🤗 日本語",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As SmolLM2's: a system turn of its own, a generation prompt, a line end after the end token."""

INST = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% elif message['role'] == 'assistant' %} {{ message['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
"""As Mistral's: no generation prompt, no system turn."""

HEADINGS = (
    "{% for message in messages %}### {{ message['role'] | capitalize }}: {{ message['content'] | trim }}\n{% endfor %}"
)
"""Headings, no special token at all, add_generation_prompt ignored."""

LAST_TURN_ONLY = (
    "{% for message in messages %}{{ message['role'] }}:"
    "{% if message['role'] != 'assistant' or loop.last %}{{ message['content'] }}{% else %}(said){% endif %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
"""Rewrites earlier turns, as templates do that drop earlier reasoning: cannot be rendered turn by turn."""


def byte_level(normalizer=None, trim_offsets: bool = True) -> Tokenizer:
    """As GPT-2's, Llama 3's, Qwen's and SmolLM2's."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def blank_first() -> Tokenizer:
    """As Llama 2's: every text starts with a blank, unknown characters fall back to bytes, <s> is put in front."""
    letters = sorted(
        {letter for text in CORPUS for letter in text if letter.isascii() and not letter.isspace()} | {"▁"}
    )
    words = ["▁the", "▁answer", "▁▁", "▁a", "he", "er", "at", "▁[", "]▁"]
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "th", "▁th", "an", "▁an", "ns", "▁c"]
    merges = [("▁", "▁"), ("▁", "t"), ("t", "h"), ("▁t", "h"), ("a", "t"), ("▁", "a"), ("e", "r"), ("h", "e")]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys([*pieces, *words, "▁t"]))}
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return tokenizer


BACKENDS: dict[str, Callable[[], Tokenizer]] = {
    "trimmed": byte_level,
    "untrimmed": lambda: byte_level(trim_offsets=False),
    "nfc": lambda: byte_level(normalizer=normalizers.NFC()),
    "blank_first": blank_first,
}
TEMPLATES = {"chatml": CHATML, "inst": INST, "headings": HEADINGS, "last_turn_only": LAST_TURN_ONLY, "none": None}


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Makes a tokenizer: `make_tokenizer(backend, template)`, names of `BACKENDS` and `TEMPLATES`."""
    made: dict[tuple[str, str], PreTrainedTokenizerFast] = {}

    def make(backend: str = "trimmed", template: str = "chatml") -> PreTrainedTokenizerFast:
        if (backend, template) not in made:
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=BACKENDS[backend](),
                bos_token="<s>",
                eos_token="<|im_end|>" if template == "chatml" else "</s>",
                unk_token="<unk>",
                pad_token="<unk>",
                additional_special_tokens=["<|im_start|>", "<|im_end|>"],
            )
            tokenizer.chat_template = TEMPLATES[template]
            made[backend, template] = tokenizer
        return made[backend, template]

    return make
