"""The valid word nearest to a misspelt one."""

import difflib
from collections.abc import Iterable


def nearest(word: str, choices: Iterable[str]) -> str:
    """The choice most like `word` (its first 80 characters); there is always one, however unlike it is.

    Raises:
        ValueError: There are no choices.
    """

    def likeness(choice: str) -> float:
        return difflib.SequenceMatcher(None, word[:80].lower(), choice.lower()).ratio()

    return max(choices, key=likeness)
