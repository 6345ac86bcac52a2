"""GSM8K: word problems whose solution ends with a number."""

from greats_jax.errors import TaskError
from greats_jax.tasks.config import TaskConfig
from greats_jax.tasks.material import Material, ungrouped
from greats_jax.tasks.metrics import final_number
from greats_jax.tasks.original_files import Placed, read_splits
from greats_jax.tasks.questions import Benchmark, Question

HUB_ID = "openai/gsm8k"


def load_gsm8k(config: TaskConfig) -> Material:
    """Loads GSM8K.

    Args:
        config: The task. Its path is a Hugging Face data set (configuration `main` unless it names another), a folder
            with a train and a test file, or the test file, whose rows have the fields `question` and `answer`, the
            latter ending with `#### 42`.

    Returns:
        Its questions. Validation examples and worked examples are the first train questions, or where there are none
        the first test questions, which are then not tested on.

    Raises:
        TaskError: A file or field is missing, or a solution does not end with `####` and a number.
    """
    path, shots = config.path or HUB_ID, config.shots or 0
    learn, test, first = read_splits(
        path,
        config.test_path,
        learn=("train",),
        learn_limit=max(config.n_validation, shots),
        test_limit=config.n_test,
        hub_configuration="main",
    )
    known = [_question(row, "validation", number) for number, row in enumerate(learn)]
    asked = tuple(_question(row, "test", number) for number, row in enumerate(test, first))
    benchmark = Benchmark(
        "gsm8k",
        asked,
        "number",
        config.max_new_tokens or 256,
        stops=("Question:", "<|user|>"),
    )
    return ungrouped(benchmark, known, config.n_validation, shots, path)


def _question(row: Placed, split: str, number: int) -> Question:
    problem, solution = row.text("question"), row.text("answer")
    _, mark, result = solution.rpartition("####")
    if not mark or final_number(result) is None:
        raise TaskError(f"{row.place}: the answer does not end with #### and a number: {solution[-40:]!r}")
    return Question(
        id=f"gsm8k-{split}-{number}",
        group="",
        prompt=f"Question: {problem}",
        opening="Answer:",
        answers=(result.strip().replace(",", ""),),
        reference=f" {solution}",
    )
