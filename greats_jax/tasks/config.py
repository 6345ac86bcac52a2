"""Settings of the target task: what the run should become good at."""

import dataclasses
from typing import Literal

from greats_jax.data.config import check_choice
from greats_jax.errors import DataError, TaskError

TaskName = Literal["mmlu", "tydiqa", "samsum", "gsm8k", "bbh", "questions", "examples", "holdout"]
Order = Literal["file", "random"]
Scoring = Literal["letter", "cloze"]
OwnMetric = Literal["exact", "contains", "f1", "rouge", "choice"]


_ONLY_OF: dict[str, tuple[TaskName, ...]] = {
    "test_path": ("samsum", "gsm8k", "questions", "examples", "holdout"),
    "shots_path": ("tydiqa", "bbh"),
    "languages": ("tydiqa",),
    "subtasks": ("bbh",),
    "metric": ("questions",),
}
"""Keys without which something else would be measured than was asked for, and the tasks that know them. What a holdout
has no use for does no harm to it: it stays where a configuration is tried with a part of the pool."""


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The target task.

    Attributes:
        name: `mmlu`, `tydiqa` (gold passage), `samsum` (summaries of dialogues), `gsm8k` and `bbh` are the published
            benchmarks; `questions` a file of your own questions with their answers; `examples` a file of your own
            examples; `holdout` a part of the pool, which is then not trained on. The last two measure perplexity
            alone.
        subject: Subject of MMLU, such as `sociology`; several with commas between them; `all` for the 57.
        path: The task's data: for a benchmark a folder or file as published or a Hugging Face data set (see
            docs/tasks.md), for `questions` and `examples` the file. Unset, the benchmark's own Hugging Face data set.
        test_path: A second file with the test examples or questions; unset, `path` has them, or what validation leaves
            of it.
        shots_path: For `tydiqa` and `bbh`, the file of worked examples, such as tydiqa-one-shot.json or
            bbh-three-shot.json, where it is not in `path`.
        n_validation: Greatest number of validation examples; selection is steered by these. Where there are several
            subjects, languages or sub-tasks, as many of each. 0 where a model is only measured.
        n_test: Greatest number of test examples or questions, likewise; they are only measured.
        shots: Worked examples before each question of a benchmark; unset, 1 for `tydiqa`, 3 for `bbh`, else 0.
        scoring: For `mmlu`, whether the likelihoods of the letters A to D are compared (the answers are listed in the
            prompt), or those of the answers' own words (`cloze`).
        languages: For `tydiqa`, the languages, such as `[english, korean]`; empty, all nine.
        subtasks: For `bbh`, the sub-tasks, such as `[date_understanding]`; empty, all 27.
        metric: For `questions`, how answers are judged: `exact`, `contains`, `f1` (of words, as SQuAD), `rouge`, or
            `choice` (the likeliest of the question's choices); unset, `choice` where questions have choices, else
            `exact`.
        max_new_tokens: Longest answer the model may write, in tokens; unset, as usual for the task.
        order: For `examples`, whether validation takes the first examples of the file or random ones.
        fraction: For `holdout`, greatest part of the pool (or of `source`) to hold out, between 0 and 1.
        source: For `holdout`, the one source whose examples are held out; unset, any.
    """

    name: TaskName = "holdout"
    subject: str | None = None
    path: str | None = None
    test_path: str | None = None
    shots_path: str | None = None
    n_validation: int = 5
    n_test: int = 500
    shots: int | None = None
    scoring: Scoring = "letter"
    languages: tuple[str, ...] = ()
    subtasks: tuple[str, ...] = ()
    metric: OwnMetric | None = None
    max_new_tokens: int | None = None
    order: Order = "file"
    fraction: float = 0.1
    source: str | None = None

    def __post_init__(self) -> None:
        try:
            check_choice("task.name", self.name, TaskName)
            check_choice("task.order", self.order, Order)
            check_choice("task.scoring", self.scoring, Scoring)
            if self.metric is not None:
                check_choice("task.metric", self.metric, OwnMetric)
        except DataError as error:
            raise TaskError(str(error)) from None
        if self.n_validation < 0:
            raise TaskError(f"task.n_validation is {self.n_validation}, but must not be negative")
        if self.n_test < 0:
            raise TaskError(f"task.n_test is {self.n_test}, but must not be negative (0 measures no test perplexity)")
        if self.shots is not None and self.shots < 0:
            raise TaskError(f"task.shots is {self.shots}, but must not be negative (0 is no worked example)")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise TaskError(f"task.max_new_tokens is {self.max_new_tokens}, but an answer has at least 1 token")
        if not 0 < self.fraction < 1:
            raise TaskError(
                f"task.fraction is {self.fraction}, but must lie between 0 and 1: the part of the pool to hold out"
            )
        self._check_needs()

    def _check_needs(self) -> None:
        for key, names in _ONLY_OF.items():
            if getattr(self, key) and self.name not in (*names, "holdout"):
                raise TaskError(
                    f"task.{key} is {getattr(self, key)!r}, which only {', '.join(names)} make use of: leave it out of "
                    f"the {self.name} task"
                )
        if self.name == "mmlu" and not (self.subject or "").strip(" ,"):
            raise TaskError("the mmlu task needs task.subject, such as sociology, or all")
        if self.name == "examples" and not self.path:
            raise TaskError("the examples task needs task.path: a file of your own examples")
        if self.name == "questions" and not self.path:
            raise TaskError("the questions task needs task.path: a JSONL file of your own questions with answers")
        if self.name == "bbh" and not self.path:
            raise TaskError(
                "the bbh task needs task.path: the folder or .tar.gz of BIG-Bench-Hard, or a Hugging Face data set "
                "such as lukaemon/bbh together with task.shots_path"
            )
