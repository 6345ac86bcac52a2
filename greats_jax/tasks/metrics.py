"""How an answer is judged: functions of what the model said and of what would have been right, all between 0 and 1."""

import collections
import functools
import re
import string
import types
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from greats_jax.errors import TaskError

Metric = Callable[[str, Sequence[str]], dict[str, float]]
"""Scores of an answer by name, the best over the acceptable answers. The first is the one that sums the metric up."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?|-?\$?\.\d+")
_MARKED_NUMBER = re.compile(r"#### (-?[0-9.,]+)")
_CONCLUSION = re.compile(r"answer is:?", re.IGNORECASE)
_ENCLOSED_LETTER = re.compile(r"\(([a-z])\)(?=$|[ .,:])")


def normalise_answer(text: str) -> str:
    """An answer as SQuAD compares it: small letters, no ASCII punctuation, no English articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def final_number(text: str) -> Decimal | None:
    """The number that a calculation ends with.

    Args:
        text: The calculation, perhaps with the next question and more after it.

    Returns:
        The number that follows the first `####` with one on its line, else the last of all; without thousands
        separators and dollar signs. None where there is no number.
    """
    marked = [_NUMBER.search(rest.partition("\n")[0]) for rest in text.split("####")[1:]]
    found = [match.group() for match in marked if match] or _NUMBER.findall(text)[-1:]
    return _decimal(found[0]) if found else None


def conclusion(text: str) -> str:
    """What a chain of thought concludes: what follows the last "answer is", to the end of its line.

    Args:
        text: The chain of thought.

    Returns:
        The conclusion without its full stop; the whole text, likewise, where it never says "answer is".
    """
    said = list(_CONCLUSION.finditer(text))
    line = text[said[-1].end() :].strip().partition("\n")[0] if said else text
    return line.strip().removesuffix(".").strip()


def choice(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether the choice taken is a right one."""
    return {"accuracy": float(prediction in answers)}


def exact(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether the answer is an acceptable one, character for character but for blanks around it."""
    return {"exact_match": float(prediction.strip() in {answer.strip() for answer in answers})}


def contains(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether an acceptable answer occurs in what was said; case and the kind of white space do not matter."""
    said = _folded(prediction)
    return {"contains": float(any(_folded(answer) in said for answer in answers))}


def f1(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Overlap in words and exact match, both after `normalise_answer`; as the evaluation script of SQuAD 1.1.

    Source: Rajpurkar et al. 2016, section 6. Nothing in common scores 0, also where both are empty.
    """
    return {
        "f1": max((_word_f1(prediction, answer) for answer in answers), default=0.0),
        "exact_match": float(normalise_answer(prediction) in {normalise_answer(answer) for answer in answers}),
    }


def rouge(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L as F-measures, computed by the package rouge-score without stemming.

    Each is the best over the acceptable answers.

    Raises:
        TaskError: The package is not installed.
    """
    scores = _rouge_scorer().score_multi(list(answers), prediction)
    return {name: float(score.fmeasure) for name, score in scores.items()}


def number(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether a calculation ends with the right number.

    `exact_match` compares the values of the final numbers; `strict_match` wants the number after `####`, written as in
    the answer but for commas, as GSM8K's own script does.
    """
    found = final_number(prediction)
    values = {final_number(answer) for answer in answers} - {None}
    marked = _MARKED_NUMBER.search(prediction)
    written = {answer.strip().replace(",", "") for answer in answers}
    strict = marked is not None and marked.group(1).replace(",", "").removesuffix(".") in written
    return {"exact_match": float(found in values), "strict_match": float(strict)}


def bbh(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether a chain of thought concludes with an acceptable answer.

    Case and the amount of white space do not matter; punctuation does, since one of the tasks asks for nothing else.
    Where the answer is a letter in brackets, the letter alone will do, and so will the letter in brackets with more
    after it, such as the words of that option.
    """
    said = conclusion(prediction)
    return {"exact_match": float(any(_concludes(said, answer) for answer in answers))}


METRICS: Mapping[str, Metric] = types.MappingProxyType(
    {"choice": choice, "exact": exact, "contains": contains, "f1": f1, "rouge": rouge, "number": number, "bbh": bbh}
)
"""Every metric by name."""


def check_metric(name: str) -> None:
    """Checks that a metric exists and that what it needs is installed, so that a run does not fail at its end.

    Raises:
        TaskError: It does not, or is not.
    """
    if name not in METRICS:
        raise TaskError(f"the metric {name!r} is unknown: expected one of {', '.join(METRICS)}")
    if name == "rouge":
        _rouge_scorer()


def _word_f1(prediction: str, answer: str) -> float:
    said, right = normalise_answer(prediction).split(), normalise_answer(answer).split()
    common = (collections.Counter(said) & collections.Counter(right)).total()
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(right)
    return 2 * precision * recall / (precision + recall)


@functools.cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score import rouge_scorer  # an extra, and its own dependencies are slow to import
    except ImportError:
        raise TaskError(
            "the metric rouge needs the package rouge-score, which is not installed: pip install rouge-score (or "
            "greats-jax[rouge])"
        ) from None
    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)


def _decimal(written: str) -> Decimal | None:
    try:
        return Decimal(written.replace(",", "").replace("$", ""))
    except InvalidOperation:
        return None


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _concludes(said: str, answer: str) -> bool:
    said, answer = _folded(said), _folded(answer)
    option = _ENCLOSED_LETTER.fullmatch(answer)
    if option is None:
        return said == answer
    named = _ENCLOSED_LETTER.match(said)
    return said == option.group(1) or (named is not None and named.group(1) == option.group(1))
