"""Questions with their model answers as examples, whose only label is the answer."""

from collections.abc import Sequence
from typing import NamedTuple

from greats_jax.data import Encoder, Example, Renderer
from greats_jax.data.formats import BadRecord
from greats_jax.data.rendering import Rendered
from greats_jax.errors import TaskError
from greats_jax.tasks.questions import Question


class EncodedQuestions(NamedTuple):
    """Examples made of questions.

    Attributes:
        examples: Those whose answer has a token within the longest example.
        unusable: Number of the others.
        dropped_shots: Number of worked examples left out so that questions fit.
    """

    examples: tuple[Example, ...]
    unusable: int
    dropped_shots: int


def encode_questions(
    questions: Sequence[Question], family: str, renderer: Renderer, encoder: Encoder
) -> EncodedQuestions:
    """Turns questions into examples.

    A question that is too long is given fewer worked examples, itself alone: the first go first. What is too long
    without any is cut at its end, as every example is.

    Args:
        questions: The questions.
        family: Name of their benchmark, for the examples' sources.
        renderer: Renders questions.
        encoder: Tokenizes them.

    Returns:
        The examples, in order.

    Raises:
        TaskError: The chat template refuses a question.
    """
    shots = [len(question.shots) for question in questions]
    encoded = encoder.encode([_rendered(question, renderer) for question in questions])
    while long := [place for place, tokens in enumerate(encoded) if tokens.truncated and shots[place]]:
        for place in long:
            shots[place] -= 1
        again = encoder.encode([_rendered(questions[place], renderer, shots[place]) for place in long])
        for place, tokens in zip(long, again, strict=True):
            encoded[place] = tokens
    examples = tuple(
        Example(
            question.id, f"{family}-{question.group}" if question.group else family, tokens.input_ids, tokens.label_mask
        )
        for question, tokens in zip(questions, encoded, strict=True)
        if tokens.label_mask.any()
    )
    dropped = sum(len(question.shots) - kept for question, kept in zip(questions, shots, strict=True))
    return EncodedQuestions(examples, len(questions) - len(examples), dropped)


def _rendered(question: Question, renderer: Renderer, shots: int | None = None) -> Rendered:
    try:
        return renderer.render_question(question.user_turn(shots), question.opening, question.reference)
    except BadRecord as fault:
        raise TaskError(f"{question.id}: {fault}") from None
