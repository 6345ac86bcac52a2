"""What a benchmark is made of, before anything is tokenized, and how many of its questions are used."""

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from greats_jax.errors import TaskError
from greats_jax.tasks.questions import Benchmark, Question

T = TypeVar("T")


class Material(NamedTuple):
    """The questions of a task.

    Attributes:
        name: The task's name, for reports and file names.
        validation: Those whose model answers steer the selection.
        test: Those whose model answers' perplexity is measured: the questions of the benchmark as they are asked of a
            model that is being trained, mostly without worked examples.
        benchmark: What the model is asked, in the order of `test`.
    """

    name: str
    validation: tuple[Question, ...]
    test: tuple[Question, ...]
    benchmark: Benchmark


def in_turn(groups: Mapping[str, Sequence[T]], limit: int) -> list[T]:
    """At most `limit` items, from every group the same number as far as it has them: its first, groups one by one."""
    layers = itertools.zip_longest(
        *(zip(itertools.repeat(place), items) for place, items in enumerate(groups.values()))
    )
    dealt = [pair for layer in layers for pair in layer if pair is not None]
    return [item for _, item in sorted(dealt[:limit], key=lambda pair: pair[0])]


def named(family: str, chosen: Sequence[str], every: Sequence[str], what: str) -> str:
    """A task's name: that of its family, with the groups chosen where they are not all of them."""
    if len(chosen) == len(every) > 1:
        return family
    return f"{family}-{'+'.join(chosen)}" if len(chosen) <= 3 else f"{family}-{len(chosen)}-{what}"


def choose(wanted: Sequence[str], every: Sequence[str], key: str, where: str) -> list[str]:
    """The groups that a setting names, without repetitions and in its order; all of them where it names none or `all`.

    Raises:
        TaskError: A name is unknown.
    """
    names = list(dict.fromkeys(name.strip().lower().replace(" ", "_") for name in wanted if name.strip()))
    if not names or names == ["all"]:
        return list(every)
    for name in names:
        if name not in every:
            raise TaskError(f"{where}: {key} names {name!r}, but there are {', '.join(every)}")
    return names


def first_shots(shots: Sequence[str], count: int, where: str) -> tuple[str, ...]:
    """The first `count` worked examples.

    Raises:
        TaskError: There are fewer.
    """
    if count > len(shots):
        raise TaskError(f"{where}: task.shots is {count}, but there are only {len(shots)} worked examples: lower it")
    return tuple(shots[:count])


def ungrouped(benchmark: Benchmark, known: Sequence[Question], n_validation: int, shots: int, where: str) -> Material:
    """The material of a benchmark without groups, whose worked examples are the questions to learn from, answered.

    Args:
        benchmark: With its questions as they are asked of a model that is being trained, without worked examples.
        known: Questions to learn from: the first steer the selection, and the first are the worked examples.
        n_validation: Most of them that steer.
        shots: Worked examples before each question of the benchmark.
        where: Where the questions are from, for the message.

    Raises:
        TaskError: There are fewer worked examples.
    """
    worked = [f"{question.prompt}\n{question.opening}{question.reference}\n\n" for question in known]
    shown = first_shots(worked, shots, where)
    asked = tuple(question._replace(shots=shown) for question in benchmark.questions)
    return Material(
        benchmark.name, tuple(known[:n_validation]), benchmark.questions, benchmark._replace(questions=asked)
    )
