"""Spoil a known part of a data set, to see whether a method notices: python scripts/make_noise.py SOURCE OUT.jsonl.

Of conversations the answers of the spoilt part are handed round among them, so that each is a good answer to another
question; of plain texts the words are shuffled. Every record says in the field `kind` which it is (sound or spoilt),
and `label_field: kind` in data.sources makes the two show as sources of their own.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from greats_jax.data import SourceConfig, load_records
from greats_jax.data.formats import Conversation, PlainText, PromptCompletion, Record
from greats_jax.errors import DataError


def spoil(records: list[Record], share: float, seed: int) -> list[dict]:
    """The records as JSON objects, the given share of them spoilt.

    Args:
        records: Conversations of one question and one answer, prompts with completions, or plain texts.
        share: Part to spoil, 0 to 1.
        seed: Of which, and how.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(records))[: round(share * len(records))])
    # A cyclic shift in random order: every answer moves, and none comes back to its question.
    order = rng.permutation(chosen)
    giver = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [
        _spoilt(record, records[giver[index]], rng) if index in giver else {**_fields(record), "kind": "sound"}
        for index, record in enumerate(records)
    ]


def _spoilt(record: Record, giver: Record, rng: np.random.Generator) -> dict:
    if isinstance(record, PlainText):
        words = np.array(record.text.split(), object)
        return {"text": " ".join(rng.permutation(words)), "kind": "spoilt"}
    question, _ = _parts(record)
    return {**_messages(question, _parts(giver)[1]), "kind": "spoilt"}


def _fields(record: Record) -> dict:
    return {"text": record.text} if isinstance(record, PlainText) else _messages(*_parts(record))


def _parts(record: Record) -> tuple[str, str]:
    """Question and answer."""
    if isinstance(record, PromptCompletion):
        return record.prompt, record.completion
    if isinstance(record, Conversation) and [turn.role for turn in record.messages] == ["user", "assistant"]:
        return record.messages[0].content, record.messages[1].content
    raise DataError("a conversation is not of one question and one answer: only those can exchange answers")


def _messages(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def main() -> None:
    """Read, spoil, write."""
    parser = argparse.ArgumentParser(description="Spoil a known part of a data set.")
    parser.add_argument("source", help="a file, a folder or a pattern, as in data.sources")
    parser.add_argument("output", type=Path, help="the .jsonl file to write")
    parser.add_argument("--share", type=float, default=0.5, help="part to spoil (default 0.5)")
    parser.add_argument("--limit", type=int, help="most records, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        loaded = load_records(SourceConfig(arguments.source), "skip").records
        records = [item.record for item in loaded]
        if arguments.limit is not None:
            drawn = np.random.default_rng(arguments.seed).permutation(len(records))[: arguments.limit]
            records = [records[index] for index in np.sort(drawn)]
        rows = spoil(records, arguments.share, arguments.seed)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        part = arguments.output.with_name(f"{arguments.output.name}.part")
        part.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        part.replace(arguments.output)  # half a file is never taken for a whole one
    except (DataError, OSError) as error:
        raise SystemExit(f"make_noise: {error}") from None
    print(f"{len(rows):,} records, {sum(row['kind'] == 'spoilt' for row in rows):,} of them spoilt: {arguments.output}")


if __name__ == "__main__":
    main()
