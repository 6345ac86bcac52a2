"""BIG-Bench-Hard: three worked chains of thought, the validation examples of LESS, and every answer of the 27 tasks."""

import io
import json
import re
import tarfile

import pytest

from greats_jax.errors import TaskError
from greats_jax.tasks import METRICS, TaskConfig
from greats_jax.tasks.bbh import SUBTASKS, load_bbh

HEAD = "Follow the\n\nsteps."
CHAINS = [
    (f"go {number}?\nOptions:\n- Yes\n- No", f"Let's think step by step.\n{number}.\nSo the answer is {said}.")
    for number, said in enumerate(("Yes", "No", "No"))
]
SHOTS = [f"Q: {question}\nA: {chain}\n\n" for question, chain in CHAINS]
TEXT = (HEAD + "\n\n" + "".join(SHOTS)).strip()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "bbh"
    (folder / "bbh").mkdir(parents=True)
    (folder / "cot-prompts").mkdir()
    for task in "navigate", "web_of_lies":
        pairs = [{"input": f"{task} {number}?", "target": "Yes"} for number in range(4)]
        (folder / "bbh" / f"{task}.json").write_text(json.dumps({"canary": "c", "examples": pairs}))
        (folder / "cot-prompts" / f"{task}.txt").write_text(f"Never train on this.\n-----\n{TEXT}")
    return folder


@pytest.mark.parametrize(
    ("template", "before", "between"),
    [
        ("tulu", "<|user|>\n", "\n<|assistant|>\n"),
        ("chat", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_validation_prompt_is_that_of_less(folder, load, texts, template, before, between):
    task = load("bbh", folder, template, n_validation=6)
    assert texts(task.validation)[1] == (
        f"{before}{HEAD}\n\n{SHOTS[0]}{SHOTS[2]}Q: {CHAINS[1][0]}{between}A: {CHAINS[1][1]}",
        f" {CHAINS[1][1]}",
    )
    assert [example.id for example in task.validation] == [
        f"bbh-{subtask}-shot-{number}" for subtask in ("navigate", "web_of_lies") for number in range(3)
    ]


def test_three_shot_prompt(folder, load, texts):
    task = load("bbh", folder)
    benchmark = task.benchmark
    question = benchmark.questions[0]
    assert question.user_turn() == f"{HEAD}\n\n{''.join(SHOTS)}Q: navigate 0?"
    assert question.opening == "A:"
    assert question.answers == ("Yes",)
    assert (benchmark.name, benchmark.metric, benchmark.max_new_tokens) == ("bbh", "bbh", 512)
    assert benchmark.stops == ("\n\nQ:", "\nQ:", "<|user|>")
    # Of test questions only the result is published: that is the label of the perplexity.
    assert texts(task.test)[0] == (
        f"<|user|>\n{question.user_turn()}\n<|assistant|>\nA: Let's think step by step.\nSo the answer is Yes.",
        " Yes.",
    )


def test_fewer_shots_and_subtasks(folder, load):
    task = load("bbh", folder, shots=1, subtasks=("web_of_lies",), n_test=2)
    assert task.name == "bbh-web_of_lies"
    assert [question.user_turn() for question in task.benchmark.questions] == [
        f"{HEAD}\n\n{SHOTS[0]}Q: web_of_lies {number}?" for number in (0, 1)
    ]
    assert load("bbh", folder, shots=0).benchmark.questions[0].user_turn() == f"{HEAD}\n\nQ: navigate 0?"
    with pytest.raises(TaskError, match=r"task.subtasks names 'snark', but there are navigate, web_of_lies"):
        load("bbh", folder, subtasks=("snark",))


def test_examples_that_are_too_long_lose_worked_examples(folder, load, texts):
    whole = load("bbh", folder)
    length = max(len(example.input_ids) for example in whole.validation) + 1
    task = load("bbh", folder, max_length=length)
    assert texts(task.validation) == texts(whole.validation)
    assert {text.count("Q: ") for text, _ in texts(task.test)} == {3}  # one of the three is gone
    assert task.counts == {"shots_dropped": 8}
    assert all(len(question.shots) == 3 for question in task.benchmark.questions)
    shorter = load("bbh", folder, max_length=length - 2)
    assert {text.count("Q: ") for text, _ in texts(shorter.validation)} == {2}
    assert shorter.counts == {"shots_dropped": 8 + 5}


def test_archive_and_file_of_less(folder, tmp_path, load):
    archive = tmp_path / "bbh.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder / "bbh", "top/bbh")
    with pytest.raises(TaskError, match=r"has no worked examples of navigate: set task.shots_path"):
        load("bbh", archive)
    shots = tmp_path / "bbh-three-shot.json"
    shots.write_text(json.dumps({task: TEXT.replace("steps", "stairs") for task in ("navigate", "web_of_lies")}))
    task = load("bbh", archive, shots_path=str(shots))
    assert task.benchmark.questions[0].user_turn().startswith("Follow the\n\nstairs.\n\nQ: go 0?")
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(folder, "top")
    assert load("bbh", archive).benchmark.questions == load("bbh", folder).benchmark.questions
    archive.write_bytes(archive.read_bytes()[:60])
    with pytest.raises(TaskError, match="cannot be read as an archive"):
        load("bbh", archive)


def test_hub(folder, load, hub):
    rows = [{"input": "here?", "target": "No"}]
    hub({("lukaemon/bbh", task, "test"): rows for task in SUBTASKS})
    task = load("bbh", "lukaemon/bbh", shots_path=str(folder / "cot-prompts"), subtasks=("navigate",))
    assert task.benchmark.questions[0].user_turn() == f"{HEAD}\n\n{''.join(SHOTS)}Q: here?"
    with pytest.raises(TaskError, match="has no worked examples of boolean_expressions"):
        load("bbh", "lukaemon/bbh")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("bbh/navigate.json", "[", "not valid JSON"),
        ("bbh/navigate.json", "{}", "expected `examples`"),
        ("bbh/navigate.json", '{"examples": [{"input": "a"}]}', "expected `examples`"),
        ("cot-prompts/navigate.txt", "only an instruction", "expected an instruction and examples"),
        ("cot-prompts/navigate.txt", "head\n\nQ: a?", "expected an instruction and examples"),
        ("bbh-three-shot.json", "[1]", "expected the worked examples of each task as a text"),
    ],
)
def test_files_that_are_not_as_published(folder, load, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(TaskError, match=message):
        load("bbh", folder)


def test_folder_without_tasks(tmp_path, load):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TaskError, match=r"holds no file of a task, such as boolean_expressions.json"):
        load("bbh", tmp_path / "empty")


def test_real_questions(shared):
    folder = shared / "data" / "eval"
    config = TaskConfig("bbh", path=str(folder / "bbh.tar.gz"), n_validation=100, n_test=10_000)
    material = load_bbh(config)
    assert tuple(dict.fromkeys(question.group for question in material.benchmark.questions)) == SUBTASKS
    assert len(material.benchmark.questions) == 6511
    assert len(material.validation) == 81
    # The file of LESS holds the same worked examples without the line that warns against training on them.
    less = load_bbh(
        TaskConfig("bbh", path=config.path, shots_path=str(folder / "bbh"), n_validation=100, n_test=10_000)
    )
    assert less == material
    asked = {(question.group, question.prompt) for question in material.benchmark.questions}
    assert not asked & {(question.group, question.prompt) for question in material.validation}


def test_formats_of_every_real_answer(shared):
    material = load_bbh(
        TaskConfig("bbh", path=str(shared / "data" / "eval" / "bbh.tar.gz"), n_validation=81, n_test=10_000)
    )
    judge = METRICS["bbh"]
    for question in material.validation:  # published chains of thought
        assert judge(question.reference, question.answers) == {"exact_match": 1}
    for group in SUBTASKS:
        questions = [question for question in material.benchmark.questions if question.group == group]
        targets = sorted({answer for question in questions for answer in question.answers})
        for target in targets:
            for said in (
                f"Let's think.\nSo the answer is {target}.",
                f" the answer is: {target}",
                f"x answer is {target}\n\n",
            ):
                right = [other for other in targets if judge(said, (other,))["exact_match"]]
                assert right == [target], (group, said, right)


def test_conclusions_are_those_of_the_evaluation_harness(shared):
    filters = pytest.importorskip("lm_eval.filters.extraction")
    theirs = filters.RegexFilter("(?<=the answer is )(.*)(?=.)")
    material = load_bbh(TaskConfig("bbh", path=str(shared / "data" / "eval" / "bbh.tar.gz"), n_validation=81))
    chains = [question.reference for question in material.validation]
    for question, (said,) in zip(material.validation, theirs.apply([[chain] for chain in chains], []), strict=True):
        assert question.answers == (said,)


def test_archive_members_are_only_read(tmp_path, load, folder):
    archive = tmp_path / "bbh.tar"
    with tarfile.open(archive, "w") as packed:
        packed.add(folder, "top")
        member = tarfile.TarInfo("../../outside.json")
        member.size = 2
        packed.addfile(member, io.BytesIO(b"{}"))
    assert load("bbh", archive).name == "bbh"
    assert not list(tmp_path.parent.rglob("outside.json"))
    assert re.search("navigate", load("bbh", archive).test[0].id)
