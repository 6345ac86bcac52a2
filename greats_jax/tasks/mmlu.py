"""MMLU by subject: multiple-choice questions whose only label is the letter of the answer."""

import csv
import difflib
import io
import re
from pathlib import Path
from typing import NamedTuple

from greats_jax.data import Encoder, Example, Renderer, load_hub_split
from greats_jax.errors import DataError, TaskError

LETTERS = "ABCD"
HUB_ID = "cais/mmlu"

# fmt: off
SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics",
    "computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics",
    "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_european_history", "high_school_geography", "high_school_government_and_politics",
    "high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history",
    "human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning",
    "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition",
    "philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine",
    "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology",
    "world_religions",
)
# fmt: on
"""The 57 subjects."""


class Question(NamedTuple):
    """One multiple-choice question.

    Attributes:
        text: The question.
        choices: The four answers.
        answer: Letter of the right one.
    """

    text: str
    choices: tuple[str, str, str, str]
    answer: str


def subject_name(written: str) -> str:
    """A subject's name as in `SUBJECTS`: small letters, underscores for blanks and hyphens."""
    return re.sub(r"[\s-]+", "_", written.strip().lower())


def load_questions(path: str, subject: str, split: str) -> list[Question]:
    """Loads the questions of a subject.

    Args:
        path: A folder with `dev/<subject>_dev.csv` and `test/<subject>_test.csv` (rows without header: question, four
            answers, letter), or a Hugging Face data set with the columns of cais/mmlu.
        subject: The subject, as in `SUBJECTS`.
        split: `dev` or `test`.

    Returns:
        The questions in order.

    Raises:
        TaskError: The folder or subject does not exist, or a file is not as described.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _from_folder(folder, subject, split)
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or path.startswith("."):
        raise TaskError(
            f"{path}: not a folder: task.path must hold dev/<subject>_dev.csv and test/<subject>_test.csv, or be the "
            f"Hugging Face data set {HUB_ID}"
        )
    _check_subject(subject, SUBJECTS, path)
    try:
        rows = load_hub_split(f"{path}:{subject}", split)
    except DataError as error:
        raise TaskError(str(error)) from None
    return [_from_hub(row, f"{path}, {split} row {number}") for number, row in enumerate(rows, start=1)]


def question_text(question: Question, subject: str) -> str:
    """The prompt of a question, as LESS and GREATS write it.

    Two blanks stand before the subject: the published code joins a text that ends with one and a name that starts with
    one.
    """
    words = subject.replace("_", " ")
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True))
    head = f"The following are multiple choice questions (with answers) about  {words}."
    return f"{head}\n\n{question.text}{choices}\nAnswer:"


def build_examples(
    questions: list[Question], subject: str, split: str, renderer: Renderer, encoder: Encoder, limit: int
) -> tuple[list[Example], int]:
    """Turns questions into examples whose only label is the letter.

    Args:
        questions: The questions.
        subject: Their subject.
        split: Their split, for the examples' names.
        renderer: Renders questions.
        encoder: Tokenizes them.
        limit: Greatest number of questions to use: the first.

    Returns:
        The examples, and the number of questions left out because the letter lies beyond the longest example.
    """
    texts = [
        renderer.render_question(question_text(question, subject), "The answer is:", f" {question.answer}")
        for question in questions[:limit]
    ]
    examples = []
    for number, tokens in enumerate(encoder.encode(texts)):
        if tokens.label_mask.any():
            name = f"mmlu-{subject}-{split}-{number}"
            examples.append(Example(name, f"mmlu-{subject}", tokens.input_ids, tokens.label_mask))
    return examples, len(texts) - len(examples)


def _from_folder(folder: Path, subject: str, split: str) -> list[Question]:
    valid = sorted(file.name.removesuffix("_dev.csv") for file in (folder / "dev").glob("*_dev.csv"))
    if not valid:
        raise TaskError(
            f"{folder}: holds no dev/<subject>_dev.csv: task.path must be the folder that holds dev and test"
        )
    _check_subject(subject, valid, str(folder))
    file = folder / split / f"{subject}_{split}.csv"
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise TaskError(f"{file}: no such file: the {split} questions of {subject} are missing") from None
    except UnicodeDecodeError:
        raise TaskError(f"{file}: not text in UTF-8: convert the file (iconv -t UTF-8)") from None
    except OSError as error:
        raise TaskError(f"{file}: cannot be read: {error.strerror or error}") from None
    questions = []
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for cells in reader:
            if cells:
                questions.append(_from_cells(cells, f"{file}, line {reader.line_num}"))
    except csv.Error as error:
        raise TaskError(f"{file}, line {reader.line_num}: not valid CSV ({error}): fetch the file again") from None
    if not questions:
        raise TaskError(f"{file}: the file is empty: fetch it again")
    return questions


def _from_cells(cells: list[str], place: str) -> Question:
    if len(cells) != 6:
        raise TaskError(f"{place}: {len(cells)} columns, expected 6: question, four answers and the letter")
    answer = cells[5].strip().upper()
    if answer not in tuple(LETTERS):
        raise TaskError(f"{place}: the answer is {cells[5]!r}, expected one of A, B, C, D (a file without header row)")
    return Question(cells[0], (cells[1], cells[2], cells[3], cells[4]), answer)


def _from_hub(row: dict, place: str) -> Question:
    try:
        first, second, third, fourth = (str(choice) for choice in row["choices"])
        answer = dict(enumerate(LETTERS))[row["answer"]]
        text = str(row["question"])
    except (KeyError, TypeError, ValueError):
        raise TaskError(
            f"{place}: expected the columns of {HUB_ID}: question, choices (four) and answer (0 to 3)"
        ) from None
    return Question(text, (first, second, third, fourth), answer)


def _check_subject(subject: str, valid: list[str] | tuple[str, ...], where: str) -> None:
    if subject in valid:
        return
    parts = [name for name in valid if subject and subject in name]
    alike = difflib.get_close_matches(subject, valid, n=3, cutoff=0.6)
    close = list(dict.fromkeys(parts + alike))[:3]
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    else:
        hint = f"the {len(valid)} subjects start with {', '.join(valid[:3])}"
    raise TaskError(f"{where}: MMLU has no subject {subject!r}: {hint}")
