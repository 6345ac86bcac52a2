"""Building of the pool: sources are read, sampled, rendered and tokenized, and whatever is dropped is counted."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from greats_jax.data.config import BadRecordPolicy, DataConfig
from greats_jax.data.examples import Example
from greats_jax.data.formats import BadRecord, PlainText
from greats_jax.data.pool import Pool
from greats_jax.data.randomness import permutation
from greats_jax.data.records import LoadedRecord, load_records
from greats_jax.data.rendering import Rendered, Renderer
from greats_jax.data.tokens import Encoded, Encoder
from greats_jax.errors import DataError


def build_pool(config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> Pool:
    """Builds the training pool.

    Args:
        config: Sources and settings.
        tokenizer: The model's tokenizer; a fast one.

    Returns:
        The pool. Cost: all records and tokens in memory; about 4,000 records of 160 tokens per second on two cores.

    Raises:
        DataError: There is no source, a source cannot be read, a record cannot be used (unless `on_bad_record` is
            skip), or nothing is left to learn from.
    """
    if not config.sources:
        raise DataError("data.sources is empty: name at least one file, folder or Hugging Face data set to train on")
    counts: dict[str, Counter[str]] = {}
    examples: list[Example] = []
    originals: list[Mapping[str, Any]] = []
    components: list[int] = []
    taken: set[str] = set()
    faults: list[str] = []
    record_tokenizer = RecordTokenizer(config, tokenizer)
    for component, source in enumerate(config.sources):
        loaded = load_records(source, config.on_bad_record)
        for name, number in loaded.skipped.items():
            counts.setdefault(name, Counter()).update(read=number, bad=number)
        for item in loaded.records:
            counts.setdefault(item.source, Counter()).update(read=1)
        sampled = _subsample(loaded.records, config.percentage, (config.seed, component), counts)
        tokenized = record_tokenizer.tokenize(sampled)
        faults += [fault for fault in (loaded.first_fault, tokenized.first_fault) if fault]
        for name, count in tokenized.counts.items():
            counts[name].update(count)
        for item, example in zip(tokenized.records, tokenized.examples, strict=True):
            examples.append(example._replace(id=_unique(example.id, taken)))
            originals.append(item.original)
            components.append(component)
    if not examples:
        raise DataError(_nothing_left(counts, faults))
    sources = tuple(dict.fromkeys(example.source for example in examples))
    weights = tuple(float(source.weight or 0) for source in config.sources)
    return Pool(
        examples=tuple(examples),
        originals=tuple(originals),
        sources=sources,
        source_indices=np.array([sources.index(example.source) for example in examples], np.int32),
        components=np.array(components, np.int32),
        weights=weights if any(weights) else None,
        counts={name: dict(count) for name, count in counts.items()},
        pad_id=padding_token(tokenizer),
    )


@dataclasses.dataclass(frozen=True)
class TokenizedRecords:
    """Records that became examples.

    Attributes:
        examples: The examples.
        records: The record of each; of a text that was split, one for each piece.
        counts: Per source: kept, truncated, no_labels, cut_away, bad.
        first_fault: Place and reason of the first record skipped.
    """

    examples: list[Example]
    records: list[LoadedRecord]
    counts: dict[str, Counter[str]]
    first_fault: str | None


class RecordTokenizer:
    """Renders and tokenizes records; those without any label are dropped and counted.

    Args:
        config: Template, longest example, and what to do with bad records.
        tokenizer: The model's tokenizer.

    Raises:
        DataError: The tokenizer is a slow one.
    """

    def __init__(self, config: DataConfig, tokenizer: PreTrainedTokenizerBase):
        self._config, self._tokenizer = config, tokenizer
        # One for all sources: the encoder's own copy of a vocabulary of 49,152 takes 0.4 s.
        self._renderer = Renderer(tokenizer, config.template)
        self._encoder = Encoder(tokenizer, config.max_length)

    def tokenize(self, records: Iterable[LoadedRecord]) -> TokenizedRecords:
        """Tokenizes records.

        Args:
            records: The records.

        Returns:
            The examples. The name of each is its record's `id`, else source and line.

        Raises:
            DataError: A record cannot be rendered, and bad records are not to be skipped.
        """
        counts: dict[str, Counter[str]] = {}
        usable: list[LoadedRecord] = []
        rendered: list[Rendered] = []
        first_fault = None
        for item in records:
            count = counts.setdefault(item.source, Counter())
            try:
                rendered.append(self._renderer.render(item.record))
                usable.append(item)
            except BadRecord as fault:
                message = f"{item.place}: {fault}"
                check_policy(message, self._config.on_bad_record)
                count["bad"] += 1
                first_fault = first_fault or message
        split = [self._config.long_text == "split" and isinstance(item.record, PlainText) for item in usable]
        examples: list[Example] = []
        kept: list[LoadedRecord] = []
        for item, text, pieces in zip(usable, rendered, self._encode(rendered, split), strict=True):
            count = counts[item.source]
            labelled = [piece for piece in pieces if piece.label_mask.any()]
            if not labelled:
                # Words of the assistant that lie beyond max_length are another matter than no words at all.
                count["cut_away" if text.spans and pieces[0].truncated else "no_labels"] += 1
                continue
            count["kept"] += 1
            count["truncated"] += int(pieces[0].truncated)
            for number, piece in enumerate(labelled, start=1):
                name = _name(item) if number == 1 else f"{_name(item)}#{number}"
                examples.append(Example(name, item.source, piece.input_ids, piece.label_mask))
            kept += [item] if len(labelled) == 1 else [self._part(item, piece) for piece in labelled]
        return TokenizedRecords(examples, kept, counts, first_fault)

    def _encode(self, rendered: list[Rendered], split: list[bool]) -> list[list[Encoded]]:
        """The pieces of every text: one, except of those that are to be split."""
        whole = iter(self._encoder.encode([text for text, cut in zip(rendered, split, strict=True) if not cut]))
        pieces = iter(self._encoder.split([text for text, cut in zip(rendered, split, strict=True) if cut]))
        return [next(pieces) if cut else [next(whole)] for cut in split]

    def _part(self, item: LoadedRecord, piece: Encoded) -> LoadedRecord:
        """A record that says what one piece of a text says."""
        text = str(self._tokenizer.decode(piece.input_ids, skip_special_tokens=True))
        return item._replace(record=PlainText(text), original={**item.original, "text": text})


def check_policy(message: str, on_bad_record: BadRecordPolicy) -> None:
    """Raises DataError with `message` unless bad records are skipped."""
    if on_bad_record == "stop":
        raise DataError(f"{message} (data.on_bad_record=skip leaves such records out)")


def padding_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token to pad with: the tokenizer's own, else its end-of-text token, else 0. Masks say what is padding."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0


def _subsample(
    records: list[LoadedRecord], percentage: float, seed: tuple[int, ...], counts: dict[str, Counter[str]]
) -> list[LoadedRecord]:
    if percentage >= 100 or not records:
        return records
    size = max(1, round(len(records) * percentage / 100))
    chosen = set(permutation(len(records), *seed)[:size].tolist())
    for index, item in enumerate(records):
        if index not in chosen:
            counts[item.source]["not_sampled"] += 1
    return [item for index, item in enumerate(records) if index in chosen]


def _name(item: LoadedRecord) -> str:
    name = item.original.get("id")
    return str(name) if isinstance(name, str | int) and str(name) else f"{item.source}-{item.line}"


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}#{number}"
    taken.add(candidate)
    return candidate


def _nothing_left(counts: dict[str, Counter[str]], faults: list[str]) -> str:
    total: Counter[str] = Counter()
    for count in counts.values():
        total.update(count)
    reasons = [
        (total["bad"], "could not be used"),
        (total["no_labels"], "have no words of the assistant to learn"),
        (total["cut_away"], "have them only beyond data.max_length"),
    ]
    said = ", ".join(f"{number} {reason}" for number, reason in reasons if number) or "there is no record"
    first = f"; the first fault: {faults[0]}" if faults else ""
    read = total["read"]
    return f"the training pool is empty: of {read} records read, {said}{first}; correct data.sources or data settings"
