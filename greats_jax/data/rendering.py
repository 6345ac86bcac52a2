"""Conversations as text, with the spans of it that the model learns.

Labels are found in the text, not in the tokens: a conversation is rendered turn by turn, and what a longer rendering
adds to the shorter one is what that turn says. Many chat templates carry no generation marks, so there is no other way
that works for all of them. `tokens.py` then carries the spans over to tokens.
"""

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from greats_jax.data.config import Template
from greats_jax.data.files import is_unicode
from greats_jax.data.formats import BadRecord, Conversation, Message, PlainText, PromptCompletion, Record
from greats_jax.errors import DataError

_PROBE = "\ue000"
"""Stands for the assistant's words: a character of the private use area, which no template has."""

_MOST_TURNS = 1000
"""Longest conversation that a chat template renders: it is rendered once a turn, so the time grows with the square."""


class Rendered(NamedTuple):
    """Text of one example.

    Attributes:
        text: The whole text, special tokens written out.
        spans: Half-open ranges of characters that are labels, in order.
        add_bos: Whether the tokens that the tokenizer puts at the start of a text are still missing. Chat templates
            write them into the text themselves.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    add_bos: bool


def render(record: Record, tokenizer: PreTrainedTokenizerBase, template: Template = "auto") -> Rendered:
    """Renders one record; for many, make one `Renderer`, whose arguments and exceptions these are."""
    return Renderer(tokenizer, template).render(record)


class Renderer:
    """Renders records for one tokenizer and one template.

    Args:
        tokenizer: The model's tokenizer.
        template: `chat`, `tulu`, or `auto` for the former where the tokenizer has a chat template.

    Raises:
        DataError: `chat` is asked for but the tokenizer has no chat template, or it has no end-of-text token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: Template = "auto"):
        has_chat = bool(getattr(tokenizer, "chat_template", None))
        if template == "auto":
            template = "chat" if has_chat else "tulu"
        if template == "chat" and not has_chat:
            raise DataError("data.template is chat, but this model's tokenizer has no chat template: set it to tulu")
        if not isinstance(tokenizer.eos_token, str):
            raise DataError("the tokenizer has no end-of-text token (eos_token): set one in its tokenizer_config.json")
        self.tokenizer = tokenizer
        self.template: Template = template
        self.eos: str = tokenizer.eos_token
        self._end_tokens = tuple(token.content for token in tokenizer.added_tokens_decoder.values())
        self._opens_turn = template == "chat" and self._has_generation_prompt()

    def render(self, record: Record) -> Rendered:
        """Renders a record.

        Args:
            record: A conversation, a prompt with its completion, or plain text. The last two use no template; they end
                with the end-of-text token.

        Returns:
            The text and the spans that are labels: of a conversation what the assistant says with its end token (with
            `tulu` also the line end after it, as in LESS), of a prompt with completion the completion, of plain text
            everything. A turn whose content is blank has no label.

        Raises:
            BadRecord: The chat template refuses the conversation or cannot be rendered turn by turn, or there are more
                than 1000 turns.
        """
        if isinstance(record, Conversation):
            return self._chat(record) if self.template == "chat" else self._tulu(record)
        if isinstance(record, PromptCompletion):
            return self._prompt_completion(record)
        return self._plain(record)

    def render_question(self, question: str, opening: str, answer: str) -> Rendered:
        """Renders a question whose answer starts with given words, of which only the rest is a label.

        Args:
            question: What the user asks.
            opening: What the assistant's turn starts with; not a label.
            answer: What follows; the label, without an end token.

        Returns:
            The text and the span of `answer`.

        Raises:
            BadRecord: The chat template refuses the question, or it cannot be written in UTF-8.
        """
        if not is_unicode(question):
            raise BadRecord(f"{question[:40]!a}... holds half of a surrogate pair, which is no character")
        if self.template == "chat":
            text = self._apply((Message("user", question),), open_turn=True) + opening
        else:
            text = f"<|user|>\n{question}\n<|assistant|>\n{opening}"
        return Rendered(text + answer, ((len(text), len(text) + len(answer)),), add_bos=self.template != "chat")

    def end_tokens(self) -> frozenset[int]:
        """Tokens after which the assistant has said all of its turn: where generation ends.

        Not only the end-of-text token: a chat template may end a turn with another one, which is then the label that
        the model learns to end with, and whoever opens the next turn has ended this one.

        Returns:
            The end-of-text token, and the tokens that the template adds after the assistant's words: the one that ends
            the turn, and the special ones of the next turn.
        """
        asked, said = Message("user", "a"), Message("assistant", _PROBE)
        after = ""
        for messages in ((asked, said, asked), (asked, said)):
            try:
                after = self.render(Conversation(messages)).text.partition(_PROBE)[2]
            except BadRecord:  # a template may want other turns; what it wrote after these is then not known
                continue
            break
        after = after.lstrip()
        ends = {
            number
            for number, token in self.tokenizer.added_tokens_decoder.items()
            if token.content.strip() and (after.startswith(token.content) or (token.special and token.content in after))
        }
        eos = self.tokenizer.eos_token_id
        return frozenset({*ends, eos} if isinstance(eos, int) else ends)

    def _plain(self, record: PlainText) -> Rendered:
        text = record.text + self.eos if record.text.strip() else ""
        return Rendered(text, ((0, len(text)),) if text else (), add_bos=True)

    def _prompt_completion(self, record: PromptCompletion) -> Rendered:
        prompt, completion = record
        if not completion.strip():
            return Rendered(prompt, (), add_bos=True)
        if prompt and not prompt[-1].isspace() and not completion[0].isspace():
            completion = " " + completion
        text = prompt + completion + self.eos
        return Rendered(text, ((len(prompt), len(text)),), add_bos=True)

    def _tulu(self, record: Conversation) -> Rendered:
        text, spans = "", []
        for index, (role, content) in enumerate(record.messages):
            if role not in ("system", "user", "assistant"):
                raise BadRecord(f"messages[{index}] has the role {role!r}, which the tulu template does not know")
            content = content.strip()
            text += f"<|{role}|>\n"
            start = len(text)
            text += f"{content}{self.eos}\n" if role == "assistant" else f"{content}\n"
            if role == "assistant" and content:
                spans.append((start, len(text)))
        return Rendered(text, tuple(spans), add_bos=True)

    def _chat(self, record: Conversation) -> Rendered:
        messages = record.messages
        if len(messages) > _MOST_TURNS:
            raise BadRecord(f"a conversation of {len(messages)} turns; a chat template renders at most {_MOST_TURNS}")
        full = self._apply(messages)
        spans = []
        for index, message in enumerate(messages):
            if message.role != "assistant" or not message.content.strip():
                continue
            before = self._apply(messages[:index], open_turn=True) if index else ""
            after = full if index + 1 == len(messages) else self._apply(messages[: index + 1])
            if not (after.startswith(before) and full.startswith(after)):
                raise BadRecord(
                    f"the chat template cannot be rendered turn by turn: up to messages[{index}] it gives a text that "
                    "the longer conversation does not start with, so the assistant's words cannot be found; set "
                    "data.template to tulu, or use another chat template"
                )
            if not (index and self._opens_turn):
                before = self._with_heading(messages[:index], before, after)
            spans.append((len(before), self._end_of_turn(after, len(before))))
        return Rendered(full, tuple(spans), add_bos=False)

    def _with_heading(self, messages: tuple[Message, ...], before: str, after: str) -> str:
        """Adds to `before` what a template without generation prompt writes before the assistant's words: a role."""
        opened, found, _ = self._apply((*messages, Message("assistant", _PROBE))).partition(_PROBE)
        if not (found and after.startswith(opened) and opened.startswith(before)):
            raise BadRecord(
                "the chat template changes the assistant's words, so they cannot be found; set data.template to tulu"
            )
        # A blank belongs to the words: it often shares a token with the first of them, and the model has to write it.
        return opened.rstrip(" ") if opened[len(before) :].strip() else before

    def _end_of_turn(self, text: str, start: int) -> int:
        """End of the label in a text that ends with an assistant's turn: its end token, else everything."""
        trimmed = text.rstrip()
        if len(trimmed) > start and trimmed.endswith(self._end_tokens):
            return len(trimmed)
        return len(text)

    def _has_generation_prompt(self) -> bool:
        question = (Message("user", "a"),)
        try:
            return self._apply(question) != self._apply(question, open_turn=True)
        except BadRecord as error:
            raise DataError(
                f"the tokenizer's chat template cannot be used: {error}; set data.template to tulu"
            ) from None

    def _apply(self, messages: tuple[Message, ...], open_turn: bool = False) -> str:
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_turn)
        except Exception as error:  # a template is a program, and fails in as many ways
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise BadRecord(f"the chat template refuses this conversation: {reason}") from None
        if not isinstance(text, str):
            raise BadRecord("the chat template gave no text")
        return text
