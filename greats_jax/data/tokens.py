"""Tokens of rendered examples, with labels whose boundaries are exact.

A text is tokenized whole, as at inference, and the spans of characters are carried over with the tokenizer's offsets.
Where a token straddles a boundary (a blank of the prompt merged with the first word of the answer) the text is cut
there and its pieces are tokenized one after the other: what a model that is prompted with the first piece sees.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from greats_jax.data.rendering import Rendered
from greats_jax.errors import DataError

_CHUNK = 1000
"""Texts tokenized at once: enough to use every core, few enough that the tokenizer's bookkeeping stays small."""


class Encoded(NamedTuple):
    """Tokens of one example.

    Attributes:
        input_ids: i32[t].
        label_mask: bool[t]; the first token is never a label, since nothing predicts it.
        truncated: Whether its end was cut off.
    """

    input_ids: np.ndarray
    label_mask: np.ndarray
    truncated: bool


class Encoder:
    """Turns rendered examples into tokens.

    Args:
        tokenizer: A fast tokenizer, which knows the characters that each token stands for.
        max_length: Longest example, in tokens.

    Raises:
        DataError: The tokenizer is a slow one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int):
        backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise DataError("the tokenizer gives no offsets: a fast tokenizer (a tokenizer.json) is needed")
        settings = json.loads(backend.to_str())
        _keep_blanks_in_offsets(settings)
        settings["truncation"] = settings["padding"] = None
        self.max_length = max_length
        self._backend: Tokenizer = Tokenizer.from_str(json.dumps(settings))
        self._bos = self._leading_tokens()

    def encode(self, examples: Sequence[Rendered]) -> list[Encoded]:
        """Tokenizes examples.

        Args:
            examples: Rendered examples.

        Returns:
            Their tokens, at most `max_length` each. Cost: one pass of the tokenizer over the texts; about a million
            tokens per second and core.
        """
        length = self.max_length
        return [
            Encoded(ids[:length], mask[:length], truncated=len(ids) > length) for ids, mask in self._whole(examples)
        ]

    def split(self, examples: Sequence[Rendered]) -> list[list[Encoded]]:
        """Tokenizes examples and cuts each into as many pieces of at most `max_length` tokens as it takes.

        Args:
            examples: Rendered examples.

        Returns:
            The pieces of each, in order; the first token of a piece is never a label. Cost: as of `encode`.
        """
        return [
            [self._piece(ids, mask, start) for start in range(0, max(len(ids), 1), self.max_length)]
            for ids, mask in self._whole(examples)
        ]

    def _piece(self, ids: np.ndarray, mask: np.ndarray, start: int) -> Encoded:
        end = start + self.max_length
        labels = mask[start:end].copy()
        labels[:1] = False
        return Encoded(ids[start:end], labels, truncated=False)

    def _whole(self, examples: Sequence[Rendered]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tokens and labels of whole examples, however long."""
        for first in range(0, len(examples), _CHUNK):
            chunk = examples[first : first + _CHUNK]
            encodings = self._backend.encode_batch([example.text for example in chunk], add_special_tokens=False)
            for example, encoding in zip(chunk, encodings, strict=True):
                yield self._finish(example, encoding)

    def _finish(self, example: Rendered, encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
        cuts = [edge for span in example.spans for edge in span]
        ids, edges = encoding.ids, [_token_at(encoding, cut) for cut in cuts]
        if None in edges:
            ids, edges = self._encode_pieces(example.text, cuts)
        mask = np.zeros(len(ids), bool)
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            mask[start:end] = True
        bos = self._bos if example.add_bos and ids[: len(self._bos)] != self._bos else []
        input_ids = np.asarray(bos + ids, np.int32)
        label_mask = np.concatenate([np.zeros(len(bos), bool), mask])
        label_mask[:1] = False
        return input_ids, label_mask

    def _encode_pieces(self, text: str, cuts: list[int]) -> tuple[list[int], list[int | None]]:
        """Tokenizes a text piece by piece; returns its tokens and the token at which each cut lies."""
        ids: list[int] = []
        edges: list[int | None] = []
        previous = 0
        for cut in cuts:
            ids += self._encode_next(text[previous:cut], first=previous == 0)
            edges.append(len(ids))
            previous = cut
        return ids + self._encode_next(text[previous:], first=previous == 0), edges

    def _encode_next(self, piece: str, first: bool) -> list[int]:
        """Tokens of a piece that follows another one."""
        if first or not piece:
            return self._backend.encode(piece, add_special_tokens=False).ids
        # Some tokenizers put a blank before the first word of whatever they are given. So that they do not do it here,
        # the piece is given after a character that does not merge with it, whose tokens are then taken away.
        for guard in "\n", "a", ".":
            encoding = self._backend.encode(guard + piece, add_special_tokens=False)
            edge = _token_at(encoding, len(guard))
            if edge is not None:
                return encoding.ids[edge:]
        return self._backend.encode(piece, add_special_tokens=False).ids

    def _leading_tokens(self) -> list[int]:
        """The tokens that this tokenizer puts before a text, such as <s>."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        full = self._backend.encode("a", add_special_tokens=True).ids
        for length in range(len(full)):
            if full[length : length + len(bare)] == bare:
                return full[:length]
        return []


def _token_at(encoding: Encoding, cut: int) -> int | None:
    """The number of tokens before a cut between characters, or None where a token lies across it."""
    position = cut
    end = encoding.offsets[-1][1] if len(encoding) else 0
    while position < end:
        index = encoding.char_to_token(position)
        span = None if index is None else encoding.token_to_chars(index)
        if span is not None:
            return index if span[0] >= cut else None
        position += 1  # a character that the tokenizer drops
    return len(encoding)


def _keep_blanks_in_offsets(settings: Any) -> None:
    """Makes byte-level tokenizers count blanks as part of their tokens, so that offsets show every straddling token."""
    if isinstance(settings, dict):
        if "trim_offsets" in settings:
            settings["trim_offsets"] = False
        for name, value in settings.items():
            if name != "model":
                _keep_blanks_in_offsets(value)
    elif isinstance(settings, list):
        for value in settings:
            _keep_blanks_in_offsets(value)
