"""The target task of a run: validation and test examples, and the pool that is left to train on."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from greats_jax.data import (
    DataConfig,
    Encoder,
    Example,
    Pool,
    RecordTokenizer,
    Renderer,
    SourceConfig,
    load_records,
    permutation,
)
from greats_jax.errors import TaskError
from greats_jax.tasks.bbh import load_bbh
from greats_jax.tasks.config import TaskConfig
from greats_jax.tasks.encoding import encode_questions
from greats_jax.tasks.gsm8k import load_gsm8k
from greats_jax.tasks.material import Material
from greats_jax.tasks.metrics import check_metric
from greats_jax.tasks.mmlu import load_mmlu
from greats_jax.tasks.own_questions import load_own_questions
from greats_jax.tasks.questions import Benchmark
from greats_jax.tasks.samsum import load_samsum
from greats_jax.tasks.tydiqa import load_tydiqa


class TargetTask(NamedTuple):
    """What a run should become good at.

    Attributes:
        name: The task's name, for reports and file names.
        validation: Examples that steer the selection.
        test: Examples that are only measured; none is among `validation`.
        pool: The training pool without the examples of this task.
        counts: Number of examples left out, by reason: `validation_unusable` and `test_unusable` have no label within
            the longest example, `test_in_validation` are in both, `pool_held_out` became this task's,
            `pool_duplicates` say the same token for token; `shots_dropped` worked examples were left out of examples
            that would otherwise be too long.
        benchmark: What else is measured than perplexity; None for a task that has nothing but examples.
    """

    name: str
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    pool: Pool
    counts: dict[str, int]
    benchmark: Benchmark | None = None


_MATERIALS: Mapping[str, Callable[[TaskConfig], Material]] = {
    "mmlu": load_mmlu,
    "tydiqa": load_tydiqa,
    "samsum": load_samsum,
    "gsm8k": load_gsm8k,
    "bbh": load_bbh,
    "questions": load_own_questions,
}


def load_task(
    config: TaskConfig, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, pool: Pool, seed: int = 0
) -> TargetTask:
    """Loads the target task.

    Args:
        config: The task.
        tokenizer: The model's tokenizer.
        data_config: Template and longest example, as for the pool.
        pool: The training pool; where nothing is to be trained, it may be empty.
        seed: Seed of what is drawn at random: examples held out, the order of one's own.

    Returns:
        The task. Examples of the pool that are also in it are gone from its pool, so nothing measured is trained on.

    Raises:
        TaskError: Task data are missing or unusable, or too few are left.
        DataError: A file of examples cannot be read.
    """
    if config.name in _MATERIALS:
        task = _load_benchmark(config, tokenizer, data_config, pool)
    else:
        load = {"examples": _load_examples, "holdout": _load_holdout}[config.name]
        task = load(config, tokenizer, data_config, pool, seed)
    content = _content_of(tokenizer)
    validation = {content(example) for example in task.validation}
    test = tuple(example for example in task.test if content(example) not in validation)
    keys = validation | {content(example) for example in test}
    copies = {example.id for example in task.pool.examples if content(example) in keys}
    left = task.pool.without(copies, "in_target")
    if len(task.pool) and not len(left):
        raise TaskError(
            f"the {task.name} task leaves nothing to train on: every example of the pool is also in the task"
        )
    in_both = task.counts.get("test_in_validation", 0) + len(task.test) - len(test)
    counts = {**task.counts, "test_in_validation": in_both, "pool_duplicates": len(copies)}
    return task._replace(test=test, pool=left, counts={reason: number for reason, number in counts.items() if number})


def _key(example: Example) -> bytes:
    return example.input_ids.tobytes()


def _content_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[Example], bytes]:
    """What an example says up to its last label, without what ends a turn: a question has no end, a record has one."""
    added = tokenizer.added_tokens_decoder

    @functools.cache
    def says_nothing(token: int) -> bool:
        return token in added or not str(tokenizer.decode([token])).strip()

    def content(example: Example) -> bytes:
        end = int(np.flatnonzero(example.label_mask)[-1]) + 1
        while end and says_nothing(int(example.input_ids[end - 1])):
            end -= 1
        return example.input_ids[:end].tobytes()

    return content


def _load_benchmark(
    config: TaskConfig, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, pool: Pool
) -> TargetTask:
    """A task of questions; which of them are used is fixed by the benchmark, so nothing is drawn."""
    name, validation, test, benchmark = _MATERIALS[config.name](config)
    check_metric(benchmark.metric)
    known = {(question.prompt, question.reference) for question in validation}
    same = {place for place, question in enumerate(test) if (question.prompt, question.reference) in known}
    test = [question for place, question in enumerate(test) if place not in same]
    asked = tuple(question for place, question in enumerate(benchmark.questions) if place not in same)
    renderer, encoder = Renderer(tokenizer, data_config.template), Encoder(tokenizer, data_config.max_length)
    steering = encode_questions(validation, benchmark.name, renderer, encoder)
    measured = encode_questions(test, benchmark.name, renderer, encoder)
    counts = {
        "validation_unusable": steering.unusable,
        "test_unusable": measured.unusable,
        "shots_dropped": steering.dropped_shots + measured.dropped_shots,
        "test_in_validation": len(same),
    }
    _check_left(name, steering.examples, measured.examples, config, counts, data_config.max_length)
    return TargetTask(
        name, steering.examples, measured.examples, pool, counts, benchmark._replace(questions=asked) if asked else None
    )


def _load_examples(
    config: TaskConfig, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, pool: Pool, seed: int
) -> TargetTask:
    path = config.path or ""
    examples, unusable = _own_examples(path, "target", tokenizer, data_config)
    if config.order == "random":
        examples = [examples[index] for index in permutation(len(examples), seed)]
    validation, rest = examples[: config.n_validation], examples[config.n_validation :]
    counts = {"validation_unusable": unusable, "test_unusable": 0}
    if config.test_path is not None:
        rest, counts["test_unusable"] = _own_examples(config.test_path, "target_test", tokenizer, data_config)
    test = rest[: config.n_test]
    name = validation[0].source if validation else "examples"
    _check_left(f"examples ({path})", validation, test, config, counts, data_config.max_length)
    return TargetTask(name, tuple(validation), tuple(test), pool, counts)


def _own_examples(
    path: str, prefix: str, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig
) -> tuple[list[Example], int]:
    """Examples of a file in order, without repetitions, and the number of records that have no label."""
    source = SourceConfig(path=path)
    loaded = load_records(source, data_config.on_bad_record)
    tokenized = RecordTokenizer(data_config, tokenizer).tokenize(loaded.records)
    examples = [
        example._replace(id=f"{prefix}-{item.line}")
        for item, example in zip(tokenized.records, tokenized.examples, strict=True)
    ]
    return list({_key(example): example for example in reversed(examples)}.values())[::-1], (
        len(loaded.records) - len(examples) + sum(loaded.skipped.values())
    )


def _load_holdout(
    config: TaskConfig, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig, pool: Pool, seed: int
) -> TargetTask:
    del tokenizer, data_config  # the pool's examples are tokenized already
    if config.source is not None and config.source not in pool.sources:
        raise TaskError(f"task.source is {config.source!r}, but the pool's sources are {', '.join(pool.sources)}")
    eligible = [
        index for index, example in enumerate(pool.examples) if config.source is None or example.source == config.source
    ]
    order = [eligible[index] for index in permutation(len(eligible), seed)]
    unique = list({_key(pool[index]): index for index in order}.values())
    size = min(round(config.fraction * len(eligible)), config.n_validation + config.n_test)
    held = [pool[index] for index in unique[:size]]
    where = f"source {config.source}" if config.source else "pool"
    if len(held) < config.n_validation + min(config.n_test, 1):
        raise TaskError(
            f"the holdout task wants {config.n_validation} validation examples and a test set, but task.fraction "
            f"{config.fraction} of the {where} ({len(eligible)} examples) is {len(held)}: raise task.fraction, lower "
            "task.n_validation, or add data"
        )
    left = pool.without({example.id for example in held}, "held_out")
    name = f"holdout-{config.source}" if config.source else "holdout"
    # The test comes first: to ask for more validation examples must not change what is measured.
    split = len(held) - config.n_validation
    return TargetTask(name, tuple(held[split:]), tuple(held[:split]), left, {"pool_held_out": len(held)})


def _check_left(
    name: str,
    validation: Sequence[Example],
    test: Sequence[Example],
    config: TaskConfig,
    counts: dict[str, int],
    max_length: int,
) -> None:
    for part, examples, wanted in ("validation", validation, config.n_validation), ("test", test, config.n_test):
        if wanted and not examples:
            dropped = counts[f"{part}_unusable"]
            reason = (
                f"{dropped} have no label within data.max_length ({max_length} tokens): raise it"
                if dropped
                else "validation took all: give task.test_path, lower task.n_validation, or set task.n_test to 0"
            )
            raise TaskError(f"the task {name} has no {part} example: {reason}")
