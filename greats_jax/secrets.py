"""Secrets out of texts: nothing that is printed or saved shows a token, wherever it came from."""

import os
import re
from collections.abc import Mapping

_HIDDEN = "***"
_IN_TEXT = re.compile(
    r"(?<=://)[^/\s@]+(?=@)"  # https://user:password@host
    r"|(?<=[?&]token=)[^\s&]+"
    r"|\bhf_[A-Za-z0-9]{20,}"
)
_NAMES = re.compile(r"(TOKEN|API_KEY|SECRET|PASSWORD)$", re.IGNORECASE)
_SHORTEST = 8  # a shorter one would hide parts of ordinary words


def masked(text: str, environment: Mapping[str, str] | None = None) -> str:
    """A text without the secrets in it.

    Args:
        text: What is to be printed or saved.
        environment: Variables whose values are secret when their names say so (HF_TOKEN, WANDB_API_KEY, ...); None for
            those of the process.

    Returns:
        The text with `***` in place of credentials in addresses, Hugging Face tokens and values of such variables.
    """
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= _SHORTEST and _NAMES.search(name):
            text = text.replace(value, _HIDDEN)
    return _IN_TEXT.sub(_HIDDEN, text)
