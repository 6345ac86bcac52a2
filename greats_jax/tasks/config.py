"""Settings of the target task: what the run should become good at."""

import dataclasses
from typing import Literal

from greats_jax.data.config import check_choice
from greats_jax.errors import DataError, TaskError

TaskName = Literal["mmlu", "examples", "holdout"]
Order = Literal["file", "random"]


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """The target task.

    Attributes:
        name: `mmlu` is one subject of MMLU; `examples` a file of your own examples; `holdout` a part of the pool,
            which is then not trained on.
        subject: Subject of MMLU, such as `sociology`.
        path: For `mmlu` a folder with dev/<subject>_dev.csv and test/<subject>_test.csv, or the Hugging Face data set
            cais/mmlu; for `examples` the file, in any format that the pool's sources may have.
        test_path: For `examples`, a second file with the test examples; unset, they are what validation leaves of
            `path`.
        n_validation: Greatest number of validation examples; selection is steered by these.
        n_test: Greatest number of test examples; they are only measured.
        order: For `examples`, whether validation takes the first examples of the file or random ones.
        fraction: For `holdout`, greatest part of the pool (or of `source`) to hold out, between 0 and 1.
        source: For `holdout`, the one source whose examples are held out; unset, any.
    """

    name: TaskName = "holdout"
    subject: str | None = None
    path: str | None = None
    test_path: str | None = None
    n_validation: int = 5
    n_test: int = 500
    order: Order = "file"
    fraction: float = 0.1
    source: str | None = None

    def __post_init__(self) -> None:
        try:
            check_choice("task.name", self.name, TaskName)
            check_choice("task.order", self.order, Order)
        except DataError as error:
            raise TaskError(str(error)) from None
        if self.n_validation < 1:
            raise TaskError(
                f"task.n_validation is {self.n_validation}, but selection needs at least 1 validation example"
            )
        if self.n_test < 0:
            raise TaskError(f"task.n_test is {self.n_test}, but must not be negative (0 measures no test perplexity)")
        if not 0 < self.fraction < 1:
            raise TaskError(
                f"task.fraction is {self.fraction}, but must lie between 0 and 1: the part of the pool to hold out"
            )
        self._check_needs()

    def _check_needs(self) -> None:
        if self.name == "mmlu" and not self.subject:
            raise TaskError("the mmlu task needs task.subject, such as sociology")
        if self.name == "examples" and not self.path:
            raise TaskError("the examples task needs task.path: a file of your own examples")
