"""Questions of one's own with their answers, one a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from greats_jax.data.files import stem_of
from greats_jax.errors import TaskError
from greats_jax.tasks.config import TaskConfig
from greats_jax.tasks.material import Material, ungrouped
from greats_jax.tasks.metrics import check_metric
from greats_jax.tasks.original_files import Placed, read_splits
from greats_jax.tasks.questions import Benchmark, Question

_FIELDS = ("prompt", "answer", "answers", "choices", "group", "opening", "id")


def load_own_questions(config: TaskConfig) -> Material:
    """Loads questions from a file.

    Args:
        config: The task. The rows of its path have `prompt`; `answer` or a list of acceptable `answers`; and where
            wanted `choices` (then the answer is one of them, or its number from 0), `group` (results are averaged
            within each), `opening` (what the answer begins with, such as "Answer:") and `id`.

    Returns:
        The questions. Validation examples and worked examples are the first rows; test questions the others, or those
        of `test_path`.

    Raises:
        TaskError: A row is not as described, or the metric does not fit the questions.
    """
    path, shots = config.path or "", config.shots or 0
    learn, test, first = read_splits(
        path,
        config.test_path,
        learn=("train", "validation", "val", "dev"),
        learn_limit=max(config.n_validation, shots),
        test_limit=config.n_test,
        hub_configuration="",
    )
    metric = config.metric or ("choice" if all("choices" in row.fields for row in learn + test) else "exact")
    check_metric(metric)
    known = [_question(row, "validation", number, metric) for number, row in enumerate(learn)]
    asked = tuple(_question(row, "test", number, metric) for number, row in enumerate(test, first))
    benchmark = Benchmark(
        f"questions-{stem_of(Path(path))}",
        asked,
        metric,
        0 if metric == "choice" else config.max_new_tokens or 64,
        stops=() if metric == "choice" else ("<|user|>",),
    )
    return ungrouped(benchmark, known, config.n_validation, shots, path)


def _question(row: Placed, split: str, number: int, metric: str) -> Question:
    unknown = [name for name in row.fields if name not in _FIELDS]
    if unknown:
        raise TaskError(f"{row.place}: the field {_shown(unknown[0])} is unknown: expected {', '.join(_FIELDS)}")
    opening = row.text("opening") if row.fields.get("opening") is not None else ""
    answers = _answers(row)
    choices: tuple[str, ...] = ()
    if metric == "choice":
        texts = _texts(row, "choices")
        strange = [answer for answer in answers if answer not in texts]
        if strange:
            shown = ", ".join(_shown(text) for text in texts[:6])
            raise TaskError(f"{row.place}: the answer {_shown(strange[0])} is none of the choices {shown}")
        choices = tuple(_follow(opening, text) for text in texts)
    continued = tuple(_follow(opening, answer) for answer in answers)
    return Question(
        id=str(row.fields.get("id") or f"questions-{split}-{number}"),
        group=str(row.fields.get("group") or ""),
        prompt=row.text("prompt"),
        opening=opening,
        answers=continued if choices else answers,
        choices=choices,
        reference=continued[0],
    )


def _answers(row: Placed) -> tuple[str, ...]:
    given = [name for name in ("answer", "answers") if row.fields.get(name) is not None]
    if len(given) != 1:
        raise TaskError(f"{row.place}: expected either `answer` or a list of `answers`, found {len(given)} of them")
    if given == ["answers"]:
        return _texts(row, "answers")
    answer: Any = row.fields["answer"]
    if isinstance(answer, int) and not isinstance(answer, bool) and row.fields.get("choices") is not None:
        choices = _texts(row, "choices")
        if not 0 <= answer < len(choices):
            raise TaskError(f"{row.place}: the answer is number {answer}, but the choices are 0 to {len(choices) - 1}")
        if str(answer) in choices and choices[answer] != str(answer):
            raise TaskError(
                f"{row.place}: the answer {answer} may be the choice {_shown(str(answer))} or the one that has this "
                f'number, {_shown(choices[answer])}: write the answer as text, "{answer}" or "{choices[answer]}"'
            )
        return (choices[answer],)
    return _checked((answer,), row, "answer")


def _texts(row: Placed, name: str) -> tuple[str, ...]:
    values = row.fields.get(name)
    if not isinstance(values, list) or not values:
        raise TaskError(f"{row.place}: expected `{name}` as a list of texts, found {_shown(values)}")
    return _checked(values, row, name)


def _checked(values: Sequence[Any], row: Placed, name: str) -> tuple[str, ...]:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise TaskError(f"{row.place}: `{name}` holds {_shown(value)}, which is neither a text nor a number")
    return tuple(str(value) for value in values)


def _follow(opening: str, text: str) -> str:
    """A text as it is written after `opening`: with a blank between them where neither has one."""
    return f" {text}" if opening and not opening[-1].isspace() and not text[0].isspace() else text


def _shown(value: Any) -> str:
    """A value as it may stand in a message of one line."""
    written = repr(value)
    return written if len(written) <= 40 else f"{written[:40]}..."
