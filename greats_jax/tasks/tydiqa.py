"""TyDiQA, gold passage: questions in nine languages whose answer stands in a given passage."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from greats_jax.errors import TaskError
from greats_jax.tasks.config import TaskConfig
from greats_jax.tasks.material import Material, choose, first_shots, in_turn, named
from greats_jax.tasks.original_files import Placed, file_bytes, file_rows, hub_rows, local_file, local_path, parsed_json
from greats_jax.tasks.questions import Benchmark, Question

HUB_ID = "google-research-datasets/tydiqa"


class Wording(NamedTuple):
    """How a language says what is asked: the instruction, and what stands before passage, question and answer."""

    instruction: str
    passage: str
    question: str
    answer: str


WORDINGS = {
    "arabic": Wording("أجب على السؤال التالي بناءً على المعلومات في المقطع المعطى.", "المقطع:", "السؤال:", "الإجابة:"),
    "bengali": Wording("প্রদত্ত অধ্যায়ের তথ্যের উপর ভিত্তি করে নিম্নলিখিত প্রশ্নের উত্তর দিন।", "অধ্যায়:", "প্রশ্ন:", "উত্তর:"),
    "english": Wording(
        "Answer the following question based on the information in the given passage.",
        "Passage:",
        "Question:",
        "Answer:",
    ),
    "finnish": Wording(
        "Vastaa seuraavaan kysymykseen annetun kappaleen tiedon perusteella.", "Kappale:", "Kysymys:", "Vastaus:"
    ),
    "indonesian": Wording(
        "Jawab pertanyaan berikut berdasarkan informasi di bagian yang diberikan.",
        "Bagian:",
        "Pertanyaan:",
        "Jawaban:",
    ),
    "korean": Wording("주어진 문단의 정보에 기반하여 다음 질문에 답하십시오.", "문단:", "질문:", "답변:"),
    "russian": Wording(
        "Ответьте на следующий вопрос на основе информации в данном отрывке.", "Отрывок:", "Вопрос:", "Ответ:"
    ),
    "swahili": Wording(
        "Jibu swali lifuatalo kulingana na habari kwenye kifungu kilichotolewa.", "Kifungu:", "Swali:", "Jibu:"
    ),
    "telugu": Wording("ఇచ్చిన పేరాలోని సమాచారం ఆధారంగా కింది ప్రశ్నకు సమాధానం ఇవ్వండి.", "పేరా:", "ప్రశ్న:", "సమాధానం:"),
}
"""The wording of LESS and open-instruct for each of the nine languages."""


class PassageQuestion(NamedTuple):
    """A question as published, with its passage and its acceptable answers."""

    id: str
    language: str
    passage: str
    question: str
    answers: tuple[str, ...]


def load_tydiqa(config: TaskConfig) -> Material:
    """Loads TyDiQA, gold passage.

    Args:
        config: The task. Its path is a folder that holds `tydiqa-goldp-*dev*.json` and, to learn from,
            `tydiqa-one-shot.json` or `tydiqa-goldp-*train*.json` (each may end with .gz), or a Hugging Face data set
            whose configuration `secondary_task` has the splits train and validation.

    Returns:
        Its questions, as many of each language as far as there are. Validation examples and worked examples are the
        one-shot examples, and after them the train questions in their order; none of them is a test question.

    Raises:
        TaskError: A file is missing or not as published, or a language is unknown or has no question.
    """
    path = config.path or HUB_ID
    learn, test = _read(path, config.shots_path)
    every = [language for language in WORDINGS if any(item.language == language for item in test)]
    if not every:
        raise TaskError(f"{path}: holds no test question: fetch tydiqa-goldp-v1.1-dev.json again")
    languages = choose(config.languages, every, "task.languages", path)
    shots = 1 if config.shots is None else config.shots
    validation: dict[str, list[Question]] = {}
    stated: dict[str, list[Question]] = {}
    asked: dict[str, list[Question]] = {}
    for language in languages:
        wording = WORDINGS[language]
        known = [item for item in learn if item.language == language]
        worked = first_shots([_worked(item) for item in known], shots, f"{path}, {language}")
        taken = {item.id for item in known}
        rest = [item for item in test if item.language == language and item.id not in taken]
        validation[language] = [_question(item) for item in known]
        stated[language] = [_question(item) for item in rest]
        # With worked examples the instruction stands apart, as in the evaluation of open-instruct; without any the
        # passage follows it at once, as in the validation examples of LESS.
        asked[language] = [
            question._replace(preamble=f"{wording.instruction}\n\n", shots=worked) if worked else question
            for question in stated[language]
        ]
    benchmark = Benchmark(
        "tydiqa", tuple(in_turn(asked, config.n_test)), "f1", config.max_new_tokens or 20, stops=("<|user|>",)
    )
    return Material(
        named("tydiqa", languages, every, "languages"),
        tuple(in_turn(validation, config.n_validation)),
        tuple(in_turn(stated, config.n_test)),
        benchmark,
    )


def _question(item: PassageQuestion) -> Question:
    wording = WORDINGS[item.language]
    return Question(
        id=f"tydiqa-{item.id}",
        group=item.language,
        prompt=f"{wording.passage} {item.passage}\n{wording.question} {item.question}",
        opening=wording.answer,
        answers=item.answers,
        preamble=wording.instruction,
        reference=f" {item.answers[0]}",
    )


def _worked(item: PassageQuestion) -> str:
    question = _question(item)
    return f"{question.prompt}\n{question.opening}{question.reference}\n\n"


def _read(path: str, shots_path: str | None) -> tuple[list[PassageQuestion], list[PassageQuestion]]:
    """What may be learned from, without repetitions and the one-shot examples first, and what is tested."""
    folder = local_path(path)
    if folder is None:
        name = path if ":" in path else f"{path}:secondary_task"
        learn = _one_shot(shots_path) if shots_path else []
        learn += [_from_hub(row) for row in hub_rows(name, "train")]
        return _unique(learn), [_from_hub(row) for row in hub_rows(name, "validation")]
    if not folder.is_dir():
        raise TaskError(
            f"{folder}: a file, but tydiqa needs the folder that holds tydiqa-goldp-v1.1-dev.json and the file of "
            "worked examples, tydiqa-one-shot.json"
        )
    files = sorted(file for file in folder.rglob("*") if file.name.endswith((".json", ".json.gz")))
    tests = [file for file in files if "goldp" in file.name and "dev" in file.name]
    if not tests:
        raise TaskError(f"{folder}: holds no tydiqa-goldp-v1.1-dev.json (or .json.gz): it has the test questions")
    shown = [shots_path] if shots_path else [str(file) for file in files if "one-shot" in file.name]
    learn = [item for file in shown for item in _one_shot(file)]
    learn += _nested(file for file in files if "goldp" in file.name and "train" in file.name)
    if not learn:
        raise TaskError(
            f"{folder}: holds neither tydiqa-one-shot.json nor a tydiqa-goldp train file to take validation examples "
            "from: add one, or set task.shots_path"
        )
    return _unique(learn), _nested(tests)


def _unique(items: Iterable[PassageQuestion]) -> list[PassageQuestion]:
    return list({item.id: item for item in reversed(list(items))}.values())[::-1]


def _one_shot(file: str) -> list[PassageQuestion]:
    """The file of LESS: for each language a list of examples."""
    path = local_file(file, "task.shots_path")
    groups = parsed_json(file_bytes(path), str(path))
    if not (isinstance(groups, dict) and all(isinstance(examples, list) for examples in groups.values())):
        raise TaskError(f"{path}: expected a list of examples for each language, as in tydiqa-one-shot.json")
    return [
        _item(Placed(f"{path}, {language}", example), language)
        for language, examples in groups.items()
        for example in examples
    ]


def _nested(files: Iterable[Path]) -> list[PassageQuestion]:
    return [item for file in files for item in _articles(file)]


def _articles(file: Path) -> Iterator[PassageQuestion]:
    """The nesting of SQuAD: articles hold paragraphs, which hold questions; the reader gives the articles."""
    for article in file_rows(file):
        paragraphs = article.fields.get("paragraphs")
        if not isinstance(paragraphs, list):
            raise TaskError(f"{article.place}: expected articles with `paragraphs`, as in the files of SQuAD")
        for number, paragraph in enumerate(paragraphs, start=1):
            place = f"{article.place}, paragraph {number}"
            try:
                questions = [{**question, "context": paragraph["context"]} for question in paragraph["qas"]]
            except (KeyError, TypeError):
                raise TaskError(f"{place}: expected `context` and `qas`, as in the files of SQuAD") from None
            for question in questions:
                yield _item(Placed(place, question), str(question.get("id", "")).split("-")[0])


def _from_hub(row: Placed) -> PassageQuestion:
    try:
        texts = list(row.fields["answers"]["text"])
    except (KeyError, TypeError):
        raise TaskError(f"{row.place}: expected answers with a list `text`, as in {HUB_ID}") from None
    nested = {**row.fields, "answers": [{"text": text} for text in texts]}
    return _item(Placed(row.place, nested), row.text("id").split("-")[0])


def _item(row: Placed, language: str) -> PassageQuestion:
    if not isinstance(row.fields, dict):
        raise TaskError(f"{row.place}: expected an object with context, question and answers")
    if language not in WORDINGS:
        raise TaskError(f"{row.place}: the language {language!r} is none of {', '.join(WORDINGS)}")
    answers = row.fields.get("answers")
    try:
        texts = [str(answer["text"]) for answer in answers or ()]
    except (KeyError, TypeError):
        raise TaskError(f"{row.place}: expected answers as a list of objects with `text`") from None
    if not texts:
        raise TaskError(f"{row.place}: the question has no answer")
    texts = tuple(dict.fromkeys(texts))
    return PassageQuestion(row.text("id"), language, row.text("context"), row.text("question"), texts)
