"""Record formats: a JSON object becomes a conversation, a prompt with its completion, or plain text."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from greats_jax.data.config import RecordFormat
from greats_jax.data.files import is_unicode
from greats_jax.errors import DataError


class BadRecord(DataError):
    """A record cannot be used; the message is the reason, without the place (the reader of the file knows that)."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


class Conversation(NamedTuple):
    """Turns that a chat template renders; what the assistant says is learnt."""

    messages: tuple[Message, ...]


class PromptCompletion(NamedTuple):
    """Text used as it is, without a template; the completion is learnt."""

    prompt: str
    completion: str


class PlainText(NamedTuple):
    """Text of which everything is learnt."""

    text: str


Record = Conversation | PromptCompletion | PlainText

_INSTRUCTION = ("instruction", "question")
_CONTEXT = ("input", "context")
_ANSWER = ("output", "response", "answer")
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}


def parse_record(value: Mapping[str, Any], format: RecordFormat = "auto") -> Record:
    """Reads one record.

    * `messages`: the field `messages`, a list of `{role, content}` as LESS, Tulu and OpenAI write it, or
      `conversations`, a list of `{from, value}`.
    * `alpaca`: `instruction` or `question`; `output`, `response` or `answer`; optionally `input` or `context`. It
      becomes a conversation of one question and one answer.
    * `prompt_completion`: `prompt` and `completion`, two texts or two lists of messages.
    * `text`: the field `text`.

    Args:
        value: The fields of the record.
        format: Its format; `auto` takes the first of these whose fields are there.

    Returns:
        The record.

    Raises:
        BadRecord: No format fits, or a field is missing or of the wrong type.
    """
    fields = {key: field for key, field in value.items() if field is not None}
    if format == "auto":
        format = _detect(fields)
    if format == "messages":
        name = "messages" if "messages" in fields else "conversations"
        if name not in fields:
            raise BadRecord(f"no field 'messages' (the fields are {_listing(fields)})")
        return _conversation(fields[name], name)
    if format == "alpaca":
        return _alpaca(fields)
    if format == "prompt_completion":
        return _prompt_completion(fields)
    if format == "text":
        return PlainText(_text(fields, ("text",)))
    raise BadRecord(f"unknown format {format!r}")


def _detect(fields: Mapping[str, Any]) -> RecordFormat:
    if "messages" in fields or "conversations" in fields:
        return "messages"
    if any(key in fields for key in _INSTRUCTION) and any(key in fields for key in _ANSWER):
        return "alpaca"
    if "prompt" in fields and "completion" in fields:
        return "prompt_completion"
    if "text" in fields:
        return "text"
    raise BadRecord(
        f"its fields ({_listing(fields)}) fit no known format: messages, instruction and output, "
        "prompt and completion, or text"
    )


def _listing(fields: Mapping[str, Any]) -> str:
    names = [str(key) for key in fields]
    if not names:
        return "none"
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _text(fields: Mapping[str, Any], names: tuple[str, ...]) -> str:
    for name in names:
        if name in fields:
            if not isinstance(fields[name], str):
                raise BadRecord(f"field {name!r} is {_kind(fields[name])}, not text")
            return fields[name]
    raise BadRecord(f"no field {' or '.join(repr(name) for name in names)} (the fields are {_listing(fields)})")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _alpaca(fields: Mapping[str, Any]) -> Conversation:
    user = _text(fields, _INSTRUCTION)
    answer = _text(fields, _ANSWER)
    context = _text(fields, _CONTEXT) if any(key in fields for key in _CONTEXT) else ""
    if context.strip():
        user = f"{user}\n\n{context}"
    return Conversation((Message("user", user), Message("assistant", answer)))


def _prompt_completion(fields: Mapping[str, Any]) -> Record:
    for name in ("prompt", "completion"):
        if name not in fields:
            raise BadRecord(f"no field {name!r} (the fields are {_listing(fields)})")
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return Conversation(_conversation(prompt, "prompt").messages + _conversation(completion, "completion").messages)
    return PromptCompletion(_text(fields, ("prompt",)), _text(fields, ("completion",)))


def _conversation(turns: object, name: str) -> Conversation:
    if isinstance(turns, str):  # a column of a CSV file
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            raise BadRecord(f"field {name!r} is text that is no JSON list of messages") from None
        if not is_unicode(turns):
            raise BadRecord(f"field {name!r} holds half of a surrogate pair, which is no character")
    if not isinstance(turns, list):
        raise BadRecord(f"field {name!r} is {_kind(turns)}, not a list of messages")
    if not turns:
        raise BadRecord(f"field {name!r} is an empty list")
    return Conversation(tuple(_message(turn, f"{name}[{index}]") for index, turn in enumerate(turns)))


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRecord(f"{where} is {_kind(turn)}, not an object with role and content")
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or not role:
        raise BadRecord(f"{where} has no role")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = _join_parts(content, where)
    if not isinstance(content, str):
        raise BadRecord(f"the content of {where} ({role}) is {_kind(content)}, not text")
    return Message(_ROLES.get(role, role), content)


def _join_parts(parts: list[Any], where: str) -> str:
    texts = []
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
            raise BadRecord(f"the content of {where} has a part of type {kind!r}: only text can be learnt")
        texts.append(part["text"])
    return "".join(texts)
