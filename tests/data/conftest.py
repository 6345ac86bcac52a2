"""The tokenizer that most tests of data use."""

import pytest
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a ChatML template."""
    return make_tokenizer()
