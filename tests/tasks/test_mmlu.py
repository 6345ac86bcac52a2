"""MMLU: the prompt of the published code, the letter as only label, and every fault of folder, file and subject."""

import datasets
import pytest

from greats_jax.data import DataConfig
from greats_jax.errors import TaskError
from greats_jax.tasks import Benchmark, TargetTask, TaskConfig, load_task
from greats_jax.tasks.mmlu import SUBJECTS, load_mmlu, load_questions

QUESTION = '"Who said ""no"", and when?",Ann,Bob,NA,"Dan, then",c\n'
PROMPT = (
    "The following are multiple choice questions (with answers) about  world religions.\n\n"
    'Who said "no", and when?\nA. Ann\nB. Bob\nC. NA\nD. Dan, then\nAnswer:'
)


@pytest.fixture
def folder(tmp_path):
    for split, rows in ("dev", 5), ("test", 8):
        (tmp_path / "mmlu" / split).mkdir(parents=True)
        for subject in "sociology", "world_religions", "prehistory":
            numbered = "".join(f"{split} {number},1,2,3,4,{'ABCD'[number % 4]}\n" for number in range(1, rows))
            (tmp_path / "mmlu" / split / f"{subject}_{split}.csv").write_text(QUESTION + numbered)
    return tmp_path / "mmlu"


def load(folder, tokenizer, pool, subject="world_religions", data=None, **options):
    config = TaskConfig("mmlu", subject=subject, path=str(folder), **options)
    return load_task(config, tokenizer, data or DataConfig(), pool)


def asked(task: TargetTask) -> Benchmark:
    assert task.benchmark is not None
    return task.benchmark


def groups(benchmark: Benchmark) -> list[str]:
    """In the order in which they first occur."""
    return list(dict.fromkeys(question.group for question in benchmark.questions))


def fault(folder, tokenizer, pool, *args, **options) -> str:
    with pytest.raises(TaskError) as caught:
        load(folder, tokenizer, pool, *args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("tulu", f"<|user|>\n{PROMPT}\n<|assistant|>\nThe answer is: C"),
        ("chat", f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\nThe answer is: C"),
    ],
)
def test_prompt_and_label(folder, tokenizer, pool, template, text):
    task = load(folder, tokenizer, pool, data=DataConfig(template=template))
    assert tokenizer.decode(task.validation[0].input_ids) == text
    for example, letter in zip(task.validation, "CBCDA", strict=True):
        assert tokenizer.decode(example.input_ids[example.label_mask]) == f" {letter}"
        assert example.label_mask[-1]


def test_sizes_and_names(folder, tokenizer, pool):
    task = load(folder, tokenizer, pool, n_validation=3, n_test=2)
    assert task.name == "mmlu-world_religions"
    assert [example.id for example in task.validation] == [f"mmlu-world_religions-dev-{number}" for number in range(3)]
    assert [example.id for example in task.test] == ["mmlu-world_religions-test-1"]
    assert task.counts == {"test_in_validation": 1}  # the first question is the same in both files
    assert len(load(folder, tokenizer, pool).test) == 7
    assert load(folder, tokenizer, pool, n_test=0).test == ()


def test_subject_may_be_written_with_blanks(folder, tokenizer, pool):
    task = load(folder, tokenizer, pool, "World Religions", n_validation=1)
    assert task.name == "mmlu-world_religions"
    assert "about  world religions." in tokenizer.decode(task.test[0].input_ids)


def test_hub(folder, tokenizer, pool, monkeypatch):
    def load_dataset(name, configuration, split):
        assert (name, configuration) == ("cais/mmlu", "sociology")
        row = {"question": f"{split}?", "choices": ["a", "b", "c", "d"], "answer": 3, "subject": configuration}
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task(TaskConfig("mmlu", subject="sociology"), tokenizer, DataConfig(), pool)
    assert "dev?\nA. a\nB. b\nC. c\nD. d\nAnswer:" in tokenizer.decode(task.validation[0].input_ids)
    assert tokenizer.decode(task.test[0].input_ids).endswith("The answer is: D")
    assert "no subject 'socology': did you mean sociology" in fault("cais/mmlu", tokenizer, pool, "socology")


@pytest.mark.parametrize("row", [{"question": "x"}, {"question": "x", "choices": ["a"], "answer": 0},
                                 {"question": "x", "choices": list("abcd"), "answer": 4}])  # fmt: skip
def test_hub_data_set_of_another_shape(tokenizer, pool, monkeypatch, row):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list([row]))
    assert "cais/mmlu:sociology, dev row 1: expected the columns of" in fault("cais/mmlu", tokenizer, pool, "sociology")


def test_hub_out_of_reach(tokenizer, pool):
    # tests/conftest.py sets the offline switches of the hub's client: nothing is asked over the network.
    assert "download it and give the path" in fault("cais/mmlu", tokenizer, pool, "sociology")


@pytest.mark.parametrize(
    ("subject", "hint"),
    [
        ("socology", "did you mean sociology?"),
        ("history", "did you mean prehistory?"),
        ("zzz", "the 3 subjects start with prehistory, sociology, world_religions"),
    ],
)
def test_unknown_subject(folder, tokenizer, pool, subject, hint):
    message = fault(folder, tokenizer, pool, subject)
    assert f"MMLU has no subject {subject!r}" in message
    assert hint in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"question,answer\n", "line 1: 2 columns, expected 6"),
        (b"question,A,B,C,D,answer\n", "line 1: the answer is 'answer', expected one of A, B, C, D"),
        (b'a,b,c,d,e,A\n"a,b,c\n', "line 2: not valid CSV"),
        (b"\xff,b,c,d,e,A\n", "not text in UTF-8"),
        (None, "no such file: the test questions of sociology are missing"),
    ],
)
def test_faults_of_files(folder, tokenizer, pool, content, expected):
    path = folder / "test" / "sociology_test.csv"
    path.unlink() if content is None else path.write_bytes(content)
    message = fault(folder, tokenizer, pool, "sociology")
    assert message.startswith(str(path))
    assert expected in message


def test_folders_that_are_none(tmp_path, folder, tokenizer, pool):
    assert "holds no dev/<subject>_dev.csv" in fault(folder / "dev", tokenizer, pool)
    assert "not a folder" in fault(folder / "none", tokenizer, pool)
    assert "not a folder" in fault(folder / "dev" / "sociology_dev.csv", tokenizer, pool)


def test_questions_that_are_too_long(folder, tokenizer, pool):
    message = fault(folder, tokenizer, pool, data=DataConfig(max_length=20))
    assert "5 have no label within data.max_length (20 tokens): raise it" in message


HEAD = "The following are multiple choice questions (with answers) about  world religions.\n\n"


def test_five_shot_prompt(folder, tokenizer, pool):
    benchmark = asked(load(folder, tokenizer, pool, shots=2))
    question = benchmark.questions[0]
    assert question.id == "mmlu-world_religions-test-1"  # the first is also a dev question
    assert question.user_turn() == (
        HEAD
        + 'Who said "no", and when?\nA. Ann\nB. Bob\nC. NA\nD. Dan, then\nAnswer: C\n\n'
        + "dev 1\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: B\n\n"
        + "test 1\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    )
    assert question.user_turn(0) == HEAD + "test 1\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:"
    assert question.opening == "The answer is:"
    assert question.choices == (" A", " B", " C", " D")
    assert question.answers == (" B",)
    assert (benchmark.name, benchmark.metric, benchmark.max_new_tokens) == ("mmlu", "choice", 0)
    assert benchmark.likelihood == "sum"
    assert "there are only 5 worked examples" in fault(folder, tokenizer, pool, shots=6)


def test_validation_and_test_examples_have_no_worked_examples(folder, tokenizer, pool):
    task = load(folder, tokenizer, pool, shots=5, data=DataConfig(template="tulu"))
    assert tokenizer.decode(task.validation[0].input_ids) == f"<|user|>\n{PROMPT}\n<|assistant|>\nThe answer is: C"
    assert tokenizer.decode(task.test[0].input_ids).count("Answer:") == 1
    assert len(task.test) == len(asked(task).questions) == 7


def test_cloze(folder, tokenizer, pool):
    task = load(folder, tokenizer, pool, scoring="cloze", shots=1, data=DataConfig(template="tulu"))
    head = "The following are questions (with answers) about world religions.\n\n"
    assert tokenizer.decode(task.validation[0].input_ids) == (
        f'<|user|>\n{head}Question: Who said "no", and when?\nAnswer:\n<|assistant|>\nThe answer is: NA'
    )
    assert tokenizer.decode(task.validation[0].input_ids[task.validation[0].label_mask]) == " NA"
    question = asked(task).questions[0]
    assert question.user_turn() == (
        f'{head}Question: Who said "no", and when?\nAnswer: NA\n\nQuestion: test 1\nAnswer:'
    )
    assert question.choices == (" 1", " 2", " 3", " 4")
    assert question.answers == (" 2",)
    assert asked(task).likelihood == "per_character"


def test_several_subjects(folder, tokenizer, pool):
    task = load(folder, tokenizer, pool, "all", n_validation=6, n_test=7)
    assert task.name == "mmlu"
    assert [example.id for example in task.validation] == [
        f"mmlu-{subject}-dev-{n}" for subject in ("prehistory", "sociology", "world_religions") for n in range(2)
    ]
    assert [example.source for example in task.test] == ["mmlu-prehistory"] * 2 + [
        "mmlu-sociology",
        "mmlu-world_religions",
    ]
    assert task.counts == {"test_in_validation": 3}
    assert groups(asked(task)) == ["prehistory", "sociology", "world_religions"]
    some = load(folder, tokenizer, pool, "World-Religions, prehistory,prehistory", n_test=4)
    assert some.name == "mmlu-world_religions+prehistory"
    assert groups(asked(some)) == ["world_religions", "prehistory"]
    assert "no subject 'all'" in fault(folder, tokenizer, pool, "all, sociology")


def test_subjects():
    assert len(SUBJECTS) == 57
    assert list(SUBJECTS) == sorted(SUBJECTS)


def test_real_subjects(shared):
    folder = str(shared / "data" / "eval" / "mmlu")
    for subject in SUBJECTS:
        assert len(load_questions(folder, subject, "dev")) == 5
    assert sum(len(load_questions(folder, subject, "test")) for subject in SUBJECTS) == 14_042


def test_all_real_questions(shared):
    config = TaskConfig("mmlu", subject="all", path=str(shared / "data" / "eval" / "mmlu"), n_test=20_000, shots=5)
    material = load_mmlu(config)
    assert material.name == "mmlu"
    assert (
        len(material.benchmark.questions) == len({question.id for question in material.benchmark.questions}) == 14_042
    )
    assert len(groups(material.benchmark)) == 57
    assert all(len(question.shots) == 5 for question in material.benchmark.questions)
