"""Own examples and held-out examples as target, and no example of the target left in the pool."""

import json

import pytest

from greats_jax.data import DataConfig, SourceConfig, build_pool
from greats_jax.errors import DataError, TaskError
from greats_jax.tasks import TaskConfig, load_task


def row(text):
    return {"messages": [{"role": "user", "content": f"q {text}"}, {"role": "assistant", "content": f"a {text}"}]}


@pytest.fixture
def write(tmp_path):
    def write(name, *rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        return str(path)

    return write


@pytest.fixture
def make_pool(write, tokenizer):
    def make(**sources):
        configs = tuple(SourceConfig(write(f"{name}.jsonl", *rows)) for name, rows in sources.items())
        return build_pool(DataConfig(sources=configs), tokenizer)

    return make


@pytest.fixture
def load(tokenizer):
    def load(pool, seed=0, data=None, **options):
        return load_task(TaskConfig(**options), tokenizer, data or DataConfig(), pool, seed)

    return load


def texts(tokenizer, examples):
    return [tokenizer.decode(example.input_ids[example.label_mask]).removesuffix("<|im_end|>") for example in examples]


def test_own_examples_in_the_order_of_the_file(write, make_pool, load, tokenizer):
    pool = make_pool(train=[row(f"train {number}") for number in range(4)])
    path = write("mine.jsonl", *(row(number) for number in range(9)))
    task = load(pool, name="examples", path=path, n_validation=2, n_test=3)
    assert task.name == "mine"
    assert texts(tokenizer, task.validation) == ["a 0", "a 1"]
    assert texts(tokenizer, task.test) == ["a 2", "a 3", "a 4"]
    assert [example.id for example in task.validation] == ["target-1", "target-2"]
    assert task.pool is not None
    assert len(task.pool) == 4
    assert task.counts == {}


def test_own_examples_at_random(write, make_pool, load, tokenizer):
    pool = make_pool(train=[row("train")])
    path = write("mine.jsonl", *(row(number) for number in range(9)))
    drawn = [
        texts(tokenizer, load(pool, seed, name="examples", path=path, order="random").validation) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5


def test_separate_test_file(write, make_pool, load, tokenizer):
    pool = make_pool(train=[row("train")])
    path, test = write("mine.jsonl", row(1), row(2)), write("test.jsonl", row(3), row(1), {"text": " "})
    task = load(pool, name="examples", path=path, test_path=test)
    assert texts(tokenizer, task.validation) == ["a 1", "a 2"]
    assert texts(tokenizer, task.test) == ["a 3"]
    assert task.counts == {"test_unusable": 1, "test_in_validation": 1}


def test_any_record_format(write, make_pool, load):
    pool = make_pool(train=[row("train")])
    path = write("mine.jsonl", {"prompt": "a", "completion": "b"}, {"instruction": "c", "output": "d"}, {"text": "e f"})
    task = load(pool, name="examples", path=path, n_validation=2)
    assert len(task.validation) == 2
    assert len(task.test) == 1


def test_copies_leave_the_pool(write, make_pool, load, tokenizer):
    pool = make_pool(one=[row("x"), row(1), row(2)], two=[row(2), row("y")])
    path = write("mine.jsonl", row(1), row(1), row(2))
    task = load(pool, name="examples", path=path, n_validation=1)
    assert texts(tokenizer, task.validation) == ["a 1"]
    assert texts(tokenizer, task.test) == ["a 2"]
    assert texts(tokenizer, task.pool.examples) == ["a x", "a y"]
    assert task.counts["pool_duplicates"] == 3
    assert task.pool.counts["one"]["in_target"] == 2
    with pytest.raises(TaskError, match="leaves nothing to train on"):
        load(make_pool(one=[row(1)]), name="examples", path=path, n_validation=1)


def test_holdout_leaves_the_pool(make_pool, load, tokenizer):
    pool = make_pool(one=[row(number) for number in range(40)], two=[row(f"two {number}") for number in range(40)])
    task = load(pool, name="holdout", fraction=0.25, n_validation=4, n_test=6)
    assert task.name == "holdout"
    assert (len(task.validation), len(task.test), len(task.pool)) == (4, 6, 70)
    held = {example.id for example in task.validation + task.test}
    assert len(held) == 10
    assert not held & {example.id for example in task.pool.examples}
    assert task.counts == {"pool_held_out": 10}
    again = load(pool, name="holdout", fraction=0.25, n_validation=4, n_test=6)
    assert [example.id for example in again.validation] == [example.id for example in task.validation]
    other = load(pool, 1, name="holdout", fraction=0.25, n_validation=4, n_test=6)
    assert [example.id for example in other.validation] != [example.id for example in task.validation]
    # The fraction bounds it where the numbers would take more.
    assert len(load(pool, name="holdout", fraction=0.25, n_validation=4).test) == 16


def test_the_test_of_a_holdout_is_the_same_for_any_number_of_validation_examples(make_pool, load):
    pool = make_pool(one=[row(number) for number in range(80)])

    def drawn(n_validation: int, fraction: float = 0.5) -> tuple[list[str], list[str]]:
        task = load(pool, name="holdout", fraction=fraction, n_validation=n_validation, n_test=6)
        return [example.id for example in task.validation], [example.id for example in task.test]

    (few, test), (many, same) = drawn(2), drawn(9)
    assert test == same
    assert few == many[:2]
    assert not set(many) & set(same)
    # Where the fraction leaves fewer than n_test, what is left of the same ones.
    assert drawn(4, fraction=0.1)[1] == test[:4]


def test_holdout_of_one_source(make_pool, load):
    pool = make_pool(one=[row(number) for number in range(40)], two=[row(f"two {number}") for number in range(40)])
    task = load(pool, name="holdout", source="two", fraction=0.5)
    assert task.name == "holdout-two"
    assert {example.source for example in task.validation + task.test} == {"two"}
    assert len(task.validation + task.test) == 20


def test_holdout_with_copies_in_the_pool(make_pool, load, tokenizer):
    pool = make_pool(one=[row(number % 10) for number in range(40)])
    task = load(pool, name="holdout", fraction=0.2, n_validation=4)
    held = texts(tokenizer, task.validation + task.test)
    assert len(held) == len(set(held)) == 8
    assert set(texts(tokenizer, task.pool.examples)).isdisjoint(held)
    assert task.counts == {"pool_held_out": 8, "pool_duplicates": 24}


def test_holdout_that_is_too_small(make_pool, load):
    pool = make_pool(one=[row(number) for number in range(20)])
    with pytest.raises(TaskError, match=r"task.fraction 0.1 of the pool \(20 examples\) is 2: raise task.fraction"):
        load(pool, name="holdout")
    with pytest.raises(TaskError, match=r"task.source is 'two', but the pool's sources are one"):
        load(pool, name="holdout", source="two")


def test_examples_that_are_too_few(write, make_pool, load):
    pool = make_pool(one=[row("x")])
    path = write("mine.jsonl", row(1), row(2))
    with pytest.raises(TaskError, match="has no test example: validation took all"):
        load(pool, name="examples", path=path)
    assert load(pool, name="examples", path=path, n_test=0).test == ()
    with pytest.raises(TaskError, match="has no validation example: 1 have no label"):
        load(pool, name="examples", path=write("blank.jsonl", {"text": " "}))
    with pytest.raises(DataError, match="no such file"):
        load(pool, name="examples", path="missing.jsonl")
    with pytest.raises(DataError, match="line 1: field 'text' is a number"):
        load(pool, name="examples", path=write("bad.jsonl", {"text": 1}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "glue"}, "task.name is 'glue', but must be one of mmlu, tydiqa, .*, holdout"),
        ({"order": "up"}, "task.order is 'up'"),
        ({"n_validation": -1}, "task.n_validation is -1"),
        ({"n_test": -1}, "task.n_test is -1"),
        ({"fraction": 1.0}, "task.fraction is 1.0"),
        ({"fraction": float("nan")}, "task.fraction is nan"),
        ({"name": "mmlu"}, "needs task.subject"),
        ({"name": "examples"}, "needs task.path"),
        ({"name": "questions"}, "the questions task needs task.path"),
        ({"name": "bbh"}, "the bbh task needs task.path"),
        ({"name": "mmlu", "subject": " , "}, "needs task.subject"),
        ({"shots": -1}, "task.shots is -1"),
        ({"max_new_tokens": 0}, "task.max_new_tokens is 0"),
        ({"scoring": "words"}, "task.scoring is 'words', but must be one of letter, cloze"),
        ({"metric": "bleu"}, "task.metric is 'bleu', but must be one of exact, contains, f1, rouge, choice"),
    ],
)
def test_settings_that_cannot_work(options, message):
    with pytest.raises(TaskError, match=message):
        TaskConfig(**options)


@pytest.mark.parametrize("template", ["tulu", "chat"])
def test_a_pool_that_holds_the_questions_of_a_task_loses_them(write, tokenizer, load, template):
    """A record ends with the end of its turn, and a question with the last token of its answer."""
    asked = [{"prompt": f"q {number}", "answer": f"a {number}"} for number in range(6)]
    data = DataConfig(
        sources=(SourceConfig(write("pool.jsonl", *(row(number) for number in (*range(6), "else", "5 more")))),),
        template=template,
    )
    pool = build_pool(data, tokenizer)
    task = load(pool, data=data, name="questions", path=write("own.jsonl", *asked), n_validation=2)
    assert task.counts == {"pool_duplicates": 6}
    assert [example.id for example in task.pool.examples] == ["pool-7", "pool-8"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "mmlu", "subject": "sociology", "test_path": "a.jsonl"}, "task.test_path is 'a.jsonl', which only"),
        ({"name": "gsm8k", "metric": "f1"}, "task.metric is 'f1', which only questions make use of"),
        ({"name": "gsm8k", "languages": ("english",)}, "leave it out of the gsm8k task"),
        ({"name": "examples", "path": "a.jsonl", "subtasks": ("snarks",)}, "task.subtasks"),
    ],
)
def test_keys_without_which_something_else_is_measured_are_refused(options, message):
    with pytest.raises(TaskError, match=message):
        TaskConfig(**options)
