"""Questions as the tokens that a model is asked them in."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from greats_jax.data import BadRecord, Encoder, Rendered, Renderer, Template
from greats_jax.errors import TaskError
from greats_jax.models import Decoder
from greats_jax.tasks.questions import Question


class Prompt(NamedTuple):
    """One question as tokens.

    Attributes:
        tokens: What is before the answer, for one that is written.
        choices: What is before each choice, and the choice itself; empty where the answer is written.
        dropped: Worked examples left out.
        shortened: Whether it was too long even without any, and lost its beginning.
    """

    tokens: list[int]
    choices: tuple[tuple[list[int], list[int]], ...]
    dropped: int
    shortened: bool


class Prompter:
    """Writes questions as tokens, with as many worked examples as there is room for.

    Args:
        model: The model, for its positions.
        tokenizer: Its tokenizer.
        template: How a user's turn is written.
        max_length: Longest prompt in tokens, with the choice where one is judged.
        new_tokens: Tokens of a written answer; with its prompt they must not pass the positions of the model.

    Attributes:
        renderer: What writes questions as text.

    Raises:
        TaskError: The new tokens leave no room for a prompt.
    """

    def __init__(
        self, model: Decoder, tokenizer: PreTrainedTokenizerBase, template: Template, max_length: int, new_tokens: int
    ):
        self.renderer = Renderer(tokenizer, template)
        self._encoder = Encoder(tokenizer, max_length=sys.maxsize)
        positions = model.config.max_length
        self._judged = min(max_length, positions)
        self._written = min(max_length, positions - new_tokens)
        if self._written < 1:
            raise TaskError(
                f"answers of {new_tokens} tokens leave no room for a question: the model has {positions} positions; "
                "lower task.max_new_tokens"
            )

    def prompts(self, questions: Sequence[Question]) -> list[Prompt]:
        """Prompts of questions, in order.

        Every question starts with all of its worked examples, whatever those before it had to leave out. What is too
        long without any loses its beginning: its end is what asks the question, and says how to answer.

        Raises:
            TaskError: A question cannot be rendered, or a choice has no token or does not fit.
        """
        made: dict[int, Prompt] = {}
        left = {i: len(question.shots) for i, question in enumerate(questions)}
        while left:
            written = [
                self._rendered(questions[i], shots, choice)
                for i, shots in left.items()
                for choice in questions[i].choices or ("",)
            ]
            encoded = iter(self._encoder.encode(written))
            again = {}
            for i, shots in left.items():
                texts = [next(encoded) for _ in questions[i].choices or ("",)]
                rows = [(one.input_ids.tolist(), int(one.label_mask.sum())) for one in texts]
                limit = self._judged if questions[i].choices else self._written
                too_long = max(len(row) for row, _ in rows) > limit
                if too_long and shots:
                    again[i] = shots - 1
                else:
                    dropped = len(questions[i].shots) - shots
                    made[i] = self._prompt(questions[i], rows, limit, dropped, too_long)
            left = again
        return [made[i] for i in range(len(questions))]

    def _rendered(self, question: Question, shots: int, choice: str) -> Rendered:
        try:
            return self.renderer.render_question(question.user_turn(shots), question.opening, choice)
        except BadRecord as error:
            raise TaskError(f"question {question.id}: {error}") from None

    def _prompt(
        self, question: Question, rows: list[tuple[list[int], int]], limit: int, dropped: int, too_long: bool
    ) -> Prompt:
        if not question.choices:
            return Prompt(rows[0][0][-limit:], (), dropped, too_long)
        choices = []
        for (tokens, count), choice in zip(rows, question.choices, strict=True):
            if not 0 < count < min(len(tokens), limit):
                raise TaskError(
                    f"question {question.id}: the choice {choice[:40]!r} has {count} tokens, but {limit} must hold it "
                    "and some of its question: raise data.max_length, or mend the choice if it is empty"
                )
            choices.append((tokens[-limit:-count], tokens[-count:]))
        return Prompt([], tuple(choices), dropped, too_long)
