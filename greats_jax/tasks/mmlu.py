"""MMLU: multiple-choice questions of 57 subjects, answered by the letter or by the answer's own words."""

import csv
import difflib
import io
import re
from pathlib import Path
from typing import NamedTuple

from greats_jax.errors import TaskError
from greats_jax.tasks.config import Scoring, TaskConfig
from greats_jax.tasks.material import Material, first_shots, in_turn, named
from greats_jax.tasks.original_files import hub_rows
from greats_jax.tasks.questions import Benchmark, Question

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


class MultipleChoice(NamedTuple):
    """One multiple-choice question as published.

    Attributes:
        text: The question.
        choices: The four answers.
        answer: Letter of the right one.
    """

    text: str
    choices: tuple[str, str, str, str]
    answer: str


def load_mmlu(config: TaskConfig) -> Material:
    """Loads MMLU.

    Validation examples are the first of the subject's dev questions and have no worked examples; the worked examples
    of test questions are the first of them too, as in the published evaluations.

    Args:
        config: The task.

    Returns:
        Its questions; where there are several subjects, as many of each as far as it has them.

    Raises:
        TaskError: A subject or file is missing or not as published.
    """
    path = config.path or HUB_ID
    subjects, every = _subjects(config.subject or "", path)
    shots = config.shots or 0
    validation: dict[str, list[Question]] = {}
    test: dict[str, list[Question]] = {}
    asked: dict[str, list[Question]] = {}
    for subject in subjects:
        dev = load_questions(path, subject, "dev")
        worked = first_shots([_worked(item, config.scoring) for item in dev], shots, f"{path}, dev split of {subject}")
        validation[subject] = [_question(item, subject, "dev", n, config.scoring) for n, item in enumerate(dev)]
        questions = load_questions(path, subject, "test")
        test[subject] = [_question(item, subject, "test", n, config.scoring) for n, item in enumerate(questions)]
        asked[subject] = [question._replace(shots=worked) for question in test[subject]]
    benchmark = Benchmark(
        "mmlu",
        tuple(in_turn(asked, config.n_test)),
        "choice",
        max_new_tokens=0,
        likelihood="per_character" if config.scoring == "cloze" else "sum",
    )
    return Material(
        named("mmlu", subjects, every, "subjects"),
        tuple(in_turn(validation, config.n_validation)),
        tuple(in_turn(test, config.n_test)),
        benchmark,
    )


def subject_name(written: str) -> str:
    """A subject's name as in `SUBJECTS`: small letters, underscores for blanks and hyphens."""
    return re.sub(r"[\s-]+", "_", written.strip().lower())


def load_questions(path: str, subject: str, split: str) -> list[MultipleChoice]:
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
    valid = _valid_subjects(path)
    _check_subject(subject, valid, path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _from_folder(folder, subject, split)
    return [_from_hub(row.fields, row.place) for row in hub_rows(f"{path}:{subject}", split)]


def _subjects(written: str, path: str) -> tuple[list[str], tuple[str, ...]]:
    """The subjects that a setting names, and all there are."""
    every = _valid_subjects(path)
    names = list(dict.fromkeys(subject_name(name) for name in written.split(",") if name.strip()))
    if names == ["all"]:
        return list(every), every
    for name in names:
        _check_subject(name, every, path)
    return names, every


def _valid_subjects(path: str) -> tuple[str, ...]:
    folder = Path(path).expanduser()
    if folder.is_dir():
        valid = sorted(file.name.removesuffix("_dev.csv") for file in (folder / "dev").glob("*_dev.csv"))
        if not valid:
            raise TaskError(
                f"{folder}: holds no dev/<subject>_dev.csv: task.path must be the folder that holds dev and test"
            )
        return tuple(valid)
    if folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or path.startswith("."):
        raise TaskError(
            f"{path}: not a folder: task.path must hold dev/<subject>_dev.csv and test/<subject>_test.csv, or be the "
            f"Hugging Face data set {HUB_ID}"
        )
    return SUBJECTS


def _question(item: MultipleChoice, subject: str, split: str, number: int, scoring: Scoring) -> Question:
    words = subject.replace("_", " ")
    if scoring == "letter":
        # Two blanks stand before the subject: the published code joins a text that ends with one and a name that
        # starts with one.
        preamble = f"The following are multiple choice questions (with answers) about  {words}.\n\n"
        choices = tuple(f" {letter}" for letter in LETTERS)
    else:
        preamble = f"The following are questions (with answers) about {words}.\n\n"
        choices = tuple(f" {choice}" for choice in item.choices)
    right = choices[LETTERS.index(item.answer)]
    return Question(
        id=f"mmlu-{subject}-{split}-{number}",
        group=subject,
        prompt=_asked(item, scoring),
        opening="The answer is:",
        answers=(right,),
        choices=choices,
        preamble=preamble,
        reference=right,
    )


def _asked(item: MultipleChoice, scoring: Scoring) -> str:
    if scoring == "cloze":
        return f"Question: {item.text}\nAnswer:"
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=True))
    return f"{item.text}{choices}\nAnswer:"


def _worked(item: MultipleChoice, scoring: Scoring) -> str:
    answer = item.answer if scoring == "letter" else item.choices[LETTERS.index(item.answer)]
    return f"{_asked(item, scoring)} {answer}\n\n"


def _from_folder(folder: Path, subject: str, split: str) -> list[MultipleChoice]:
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


def _from_cells(cells: list[str], place: str) -> MultipleChoice:
    if len(cells) != 6:
        raise TaskError(f"{place}: {len(cells)} columns, expected 6: question, four answers and the letter")
    answer = cells[5].strip().upper()
    if answer not in tuple(LETTERS):
        raise TaskError(f"{place}: the answer is {cells[5]!r}, expected one of A, B, C, D (a file without header row)")
    return MultipleChoice(cells[0], (cells[1], cells[2], cells[3], cells[4]), answer)


def _from_hub(row: dict, place: str) -> MultipleChoice:
    try:
        first, second, third, fourth = (str(choice) for choice in row["choices"])
        answer = dict(enumerate(LETTERS))[row["answer"]]
        text = str(row["question"])
    except (KeyError, TypeError, ValueError):
        raise TaskError(
            f"{place}: expected the columns of {HUB_ID}: question, choices (four) and answer (0 to 3)"
        ) from None
    return MultipleChoice(text, (first, second, third, fourth), answer)


def _check_subject(subject: str, valid: tuple[str, ...], where: str) -> None:
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
