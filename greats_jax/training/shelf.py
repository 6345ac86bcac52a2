"""What runs of one process have in common, for whoever makes several: nothing is kept that is not put here."""

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

_Thing = TypeVar("_Thing")


class Shelf:
    """Keeps tokenizers, examples, frozen weights and compiled steps from one run to the next.

    What stands under a key is what would be made again from the same configuration. It stays until something else
    takes its place or the shelf is dropped. Files that change meanwhile are not read again.
    """

    def __init__(self) -> None:
        self._things: dict[str, dict[Hashable, object]] = {}

    def take(self, kind: str, key: Hashable, make: Callable[[], _Thing], most: int = 1) -> _Thing:
        """What stands under a key; made and put there if there is nothing.

        Args:
            kind: Keys of one kind are apart from those of others.
            key: Everything that the thing follows from.
            make: Makes it.
            most: Things of this kind that are kept; the one taken longest ago goes first.
        """
        things = self._things.setdefault(kind, {})
        if key not in things:
            while len(things) >= most:  # before the new one is made: two large models may not fit
                things.pop(next(iter(things)))
            things[key] = make()
        else:
            things[key] = things.pop(key)
        return cast(_Thing, things[key])
