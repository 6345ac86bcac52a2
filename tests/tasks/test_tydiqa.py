"""TyDiQA: prompts of LESS and open-instruct in nine languages, and no one-shot example among the test questions."""

import gzip
import json
from collections import Counter

import pytest

from greats_jax.errors import TaskError
from greats_jax.tasks import TaskConfig
from greats_jax.tasks.tydiqa import WORDINGS, load_tydiqa

INSTRUCTION = "Answer the following question based on the information in the given passage."
PASSAGE = "Even after Byzantine rule. All of Constantinople in 1453."
SHOT = f"Passage: {PASSAGE}\nQuestion: When did it end?\nAnswer: 1453\n\n"


def entry(language, number, question="When did it end?", answers=("1453", "1453")):
    return {
        "id": f"{language}-{number}",
        "context": PASSAGE,
        "question": question,
        "answers": [{"text": text, "answer_start": PASSAGE.find(text)} for text in answers],
    }


def articles(*entries):
    paragraphs = [
        {"context": item["context"], "qas": [{key: item[key] for key in ("id", "question", "answers")}]}
        for item in entries
    ]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]} for paragraph in paragraphs]}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tydiqa"
    folder.mkdir()
    dev = [
        entry(language, number, f"Who {number}?", ("Ann", "Bob"))
        for language in ("english", "korean")
        for number in range(1, 4)
    ]
    with gzip.open(folder / "tydiqa-goldp-v1.1-dev.json.gz", "wt") as file:
        json.dump(articles(entry("english", 0), *dev), file)
    shots = {"english": [entry("english", 0)], "korean": [entry("korean", 0)]}
    (folder / "tydiqa-one-shot.json").write_text(json.dumps(shots))
    return folder


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (
            "tulu",
            f"<|user|>\n{INSTRUCTION}Passage: {PASSAGE}\nQuestion: When did it end?\n<|assistant|>\nAnswer: 1453",
        ),
        (
            "chat",
            f"<|im_start|>user\n{INSTRUCTION}Passage: {PASSAGE}\nQuestion: When did it end?<|im_end|>\n"
            "<|im_start|>assistant\nAnswer: 1453",
        ),
    ],
)
def test_validation_prompt_is_that_of_less(folder, load, texts, template, text):
    task = load("tydiqa", folder, template)
    assert texts(task.validation)[0] == (text, " 1453")
    assert [example.id for example in task.validation] == ["tydiqa-english-0", "tydiqa-korean-0"]
    assert texts(task.validation)[1][0].split("\n")[1].startswith(WORDINGS["korean"].instruction + "문단: ")


def test_one_shot_prompt_is_that_of_open_instruct(folder, load):
    benchmark = load("tydiqa", folder).benchmark
    question = benchmark.questions[0]
    assert question.user_turn() == f"{INSTRUCTION}\n\n{SHOT}Passage: {PASSAGE}\nQuestion: Who 1?"
    assert question.opening == "Answer:"
    assert question.answers == ("Ann", "Bob")
    assert question.group == "english"
    assert (benchmark.name, benchmark.metric, benchmark.max_new_tokens) == ("tydiqa", "f1", 20)
    assert benchmark.stops == ("<|user|>",)


@pytest.mark.parametrize("task", ["tydiqa", "bbh", "gsm8k"])
def test_longest_answer(load, shared, task):
    paths = {"tydiqa": "tydiqa", "bbh": "bbh.tar.gz", "gsm8k": "gsm8k_test.jsonl.gz"}
    path = shared / "data" / "eval" / paths[task]
    assert load(task, path, n_test=3, max_new_tokens=7).benchmark.max_new_tokens == 7


def test_prompt_without_worked_example_is_that_of_validation(folder, load, texts):
    task = load("tydiqa", folder, shots=0)
    question = task.benchmark.questions[0]
    assert question.user_turn() == f"{INSTRUCTION}Passage: {PASSAGE}\nQuestion: Who 1?"
    assert texts(task.test)[0] == (f"<|user|>\n{question.user_turn()}\n<|assistant|>\nAnswer: Ann", " Ann")


def test_no_one_shot_example_is_tested(folder, load):
    task = load("tydiqa", folder)
    ids = [example.id for example in task.test]
    assert ids == [f"tydiqa-{language}-{n}" for language in ("english", "korean") for n in (1, 2, 3)]
    assert [question.id for question in task.benchmark.questions] == ids
    assert task.name == "tydiqa"
    assert task.counts == {}


def test_languages(folder, load):
    task = load("tydiqa", folder, languages=("korean",), n_test=2)
    assert task.name == "tydiqa-korean"
    assert [example.id for example in task.test] == ["tydiqa-korean-1", "tydiqa-korean-2"]
    with pytest.raises(TaskError, match=r"task.languages names 'finnish', but there are english, korean"):
        load("tydiqa", folder, languages=("finnish",))


def test_train_questions_follow_the_one_shot_examples(folder, load):
    train = articles(entry("english", 1, "Who 1?"), entry("english", 7), entry("korean", 8))
    (folder / "tydiqa-goldp-train-english.json").write_text(json.dumps(train))
    task = load("tydiqa", folder, n_validation=50, shots=2)
    assert [example.id.removeprefix("tydiqa-") for example in task.validation] == [
        "english-0", "english-1", "english-7", "korean-0", "korean-8",
    ]  # fmt: skip
    # A question of the dev file that is also a train question is not tested.
    assert [example.id for example in task.test][:2] == ["tydiqa-english-2", "tydiqa-english-3"]
    assert task.benchmark.questions[0].user_turn().count("Answer: ") == 2
    with pytest.raises(TaskError, match=r"korean: task.shots is 3, but there are only 2 worked examples"):
        load("tydiqa", folder, shots=3)
    (folder / "tydiqa-one-shot.json").unlink()
    assert load("tydiqa", folder).validation[0].id == "tydiqa-english-1"


def test_one_shot_file_elsewhere(folder, tmp_path, load):
    (folder / "tydiqa-one-shot.json").rename(tmp_path / "mine.json")
    assert len(load("tydiqa", folder, shots_path=str(tmp_path / "mine.json")).validation) == 2
    with pytest.raises(TaskError, match=r"holds neither tydiqa-one-shot.json nor a tydiqa-goldp train file"):
        load("tydiqa", folder)
    with pytest.raises(TaskError, match=r"correct task.path|no such file"):
        load("tydiqa", folder, shots_path=str(tmp_path / "none.json"))


def test_hub(load, hub):
    def row(item):
        answers = {"text": [answer["text"] for answer in item["answers"]], "answer_start": [0, 0]}
        return {**item, "title": "t", "answers": answers}

    name = ("google-research-datasets/tydiqa", "secondary_task")
    hub({(*name, "train"): [row(entry("english", n)) for n in (0, 5)],
         (*name, "validation"): [row(entry("english", 1, "Who 1?", ("Ann", "Bob")))]})  # fmt: skip
    task = load("tydiqa", "google-research-datasets/tydiqa")
    assert [example.id for example in task.validation] == ["tydiqa-english-0", "tydiqa-english-5"]
    assert task.benchmark.questions[0].user_turn() == f"{INSTRUCTION}\n\n{SHOT}Passage: {PASSAGE}\nQuestion: Who 1?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": [{"title": "t"}]}, "expected articles with `paragraphs`"),
        ({"data": [{"paragraphs": []}]}, "holds no test question"),
        ({"data": [{"paragraphs": [{"qas": [{}]}]}]}, "paragraph 1: expected `context` and `qas`"),
        (articles(entry("english", 1, answers=())), "line 1, paragraph 1: the question has no answer"),
        (articles(entry("klingon", 1)), "the language 'klingon' is none of arabic, bengali"),
        (articles({**entry("english", 1), "question": 5}), "the field 'question' is int, not text"),
        (articles({**entry("english", 1), "answers": [{"start": 5}]}), "expected answers as a list of objects"),
    ],
)
def test_files_that_are_not_as_published(folder, load, content, message):
    (folder / "tydiqa-goldp-v1.1-dev.json.gz").unlink()
    with pytest.raises(TaskError, match=r"holds no tydiqa-goldp-v1.1-dev.json"):
        load("tydiqa", folder)
    (folder / "tydiqa-goldp-v1.1-dev.json").write_text(json.dumps(content))
    with pytest.raises(TaskError, match=message):
        load("tydiqa", folder)


@pytest.mark.parametrize("content", ["[]", '{"english": {}}', '{"english": [1]}', "x", '{"english": [{"id": "a"}]}'])
def test_one_shot_files_that_are_not_as_published(folder, load, content):
    (folder / "tydiqa-one-shot.json").write_text(content)
    with pytest.raises(TaskError, match=r"tydiqa-one-shot\.json"):
        load("tydiqa", folder)


def test_paths_that_are_no_folder(folder, load):
    with pytest.raises(TaskError, match=r"a file, but tydiqa needs the folder"):
        load("tydiqa", folder / "tydiqa-one-shot.json")
    with pytest.raises(TaskError, match=r"no such file or folder: correct task.path"):
        load("tydiqa", folder / "none")


def test_real_questions(shared):
    folder = shared / "data" / "eval" / "tydiqa"
    material = load_tydiqa(TaskConfig("tydiqa", path=str(folder), n_validation=9, n_test=10_000))
    shots = json.loads((folder / "tydiqa-one-shot.json").read_text(encoding="utf-8"))
    assert [question.id for question in material.validation] == [f"tydiqa-{those[0]['id']}" for those in shots.values()]
    groups = Counter(question.group for question in material.benchmark.questions)
    # 5077 questions less one in each language; two Korean and two Swahili ones are also train questions.
    assert groups == {"arabic": 920, "bengali": 112, "english": 439, "finnish": 781, "indonesian": 564, "korean": 273,
                      "russian": 811, "swahili": 496, "telugu": 668}  # fmt: skip
    for question in material.benchmark.questions:
        shot = shots[question.group][0]
        wording = WORDINGS[question.group]
        assert question.shots == (
            f"{wording.passage} {shot['context']}\n{wording.question} {shot['question']}\n{wording.answer} "
            f"{shot['answers'][0]['text']}\n\n",
        )
        assert question.id not in {seen.id for seen in material.validation}
