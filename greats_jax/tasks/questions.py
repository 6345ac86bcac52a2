"""Questions with known answers, and how a model's answers to them are obtained and judged."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Likelihood = Literal["sum", "per_token", "per_character"]


class Question(NamedTuple):
    """One thing asked.

    What the user says is `preamble`, the `shots` and `prompt`, one after the other with nothing between them; the
    assistant's turn begins with `opening`, and what follows is judged.

    Attributes:
        id: Its name, unique in its benchmark.
        group: What results are averaged within: the subject, language or sub-task; "" where there is none.
        prompt: The question itself, without worked examples.
        opening: How the assistant's turn begins before what is judged, such as `The answer is:`; may be empty.
        answers: Acceptable answers. Of a question with choices, those of `choices` that are right, letter for letter.
        choices: Continuations of `opening` whose likelihoods are compared, each with its leading blank; empty where
            the model writes its answer.
        shots: Worked examples, in order, each with the blank lines that end it. Where they do not fit, the first ones
            are left out first.
        preamble: What stands before the worked examples: an instruction with the blank lines that end it.
        reference: The model answer as it follows `opening`, with its leading blank or newline: what a validation
            example has as its label. It may say more than `answers` does, such as the steps of a calculation.
    """

    id: str
    group: str
    prompt: str
    opening: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    shots: tuple[str, ...] = ()
    preamble: str = ""
    reference: str = ""

    def user_turn(self, shots: int | None = None) -> str:
        """What the user says.

        Args:
            shots: Number of worked examples to keep, from 0: the last ones; unset, all.

        Returns:
            The text of the user's turn.
        """
        kept = self.shots if shots is None else self.shots[len(self.shots) - min(shots, len(self.shots)) :]
        return self.preamble + "".join(kept) + self.prompt


class Benchmark(NamedTuple):
    """What is measured, and how.

    Attributes:
        name: Its name in reports, such as `mmlu`.
        questions: The questions, none of which is a validation example.
        metric: How an answer is judged: a key of `greats_jax.tasks.metrics.METRICS`.
        max_new_tokens: Greatest number of tokens of an answer that the model writes; 0 where choices are compared.
        stops: Texts at the first of which a written answer ends; they are not part of it.
        likelihood: For choices, what is compared: the logarithm of a choice's probability as it is, divided by its
            tokens, or by its length in characters. The first and the last are `acc` and `acc_norm` of
            lm-evaluation-harness, which counts the characters of the choice without its leading blank.
    """

    name: str
    questions: tuple[Question, ...]
    metric: str
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    likelihood: Likelihood = "sum"


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The part of a text before whichever of `stops` occurs first in it; the whole text where none does."""
    found = [place for place in (text.find(stop) for stop in stops if stop) if place >= 0]
    return text[: min(found)] if found else text
