"""SAMSum and its like: short summaries of dialogues."""

from greats_jax.tasks.config import TaskConfig
from greats_jax.tasks.material import Material, ungrouped
from greats_jax.tasks.original_files import Placed, read_splits
from greats_jax.tasks.questions import Benchmark, Question

HUB_ID = "knkarthick/samsum"


def load_samsum(config: TaskConfig) -> Material:
    """Loads a data set of dialogues and summaries.

    Args:
        config: The task. Its path is a Hugging Face data set, a folder with a validation (or train) and a test file,
            or a file, whose rows have the fields `dialogue` and `summary`.

    Returns:
        Its questions. Validation examples and worked examples are the first rows of the validation split.

    Raises:
        TaskError: A file or field is missing.
    """
    path, shots = config.path or HUB_ID, config.shots or 0
    learn, test, first = read_splits(
        path,
        config.test_path,
        learn=("validation", "val", "dev", "train"),
        learn_limit=max(config.n_validation, shots),
        test_limit=config.n_test,
        hub_configuration="",
    )
    known = [_question(row, "validation", number) for number, row in enumerate(learn)]
    asked = tuple(_question(row, "test", number) for number, row in enumerate(test, first))
    benchmark = Benchmark(
        "samsum",
        asked,
        "rouge",
        config.max_new_tokens or 128,
        stops=("\n\n", "<|user|>"),
    )
    return ungrouped(benchmark, known, config.n_validation, shots, path)


def _question(row: Placed, split: str, number: int) -> Question:
    # Line ends as everywhere else: the published dialogues have those of Windows.
    dialogue, summary = (row.text(name).replace("\r\n", "\n").strip() for name in ("dialogue", "summary"))
    return Question(
        id=f"samsum-{split}-{number}",
        group="",
        prompt=f"Summarize this dialogue:\n{dialogue}\n---",
        opening="Summary:\n",
        answers=(summary,),
        reference=summary,
    )
