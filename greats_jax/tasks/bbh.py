"""BIG-Bench-Hard: 27 tasks that are asked with three worked chains of thought."""

import io
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from greats_jax.errors import TaskError
from greats_jax.tasks.config import TaskConfig
from greats_jax.tasks.material import Material, choose, first_shots, in_turn, named
from greats_jax.tasks.metrics import conclusion
from greats_jax.tasks.original_files import file_bytes, hub_rows, local_file, local_path, parsed_json
from greats_jax.tasks.questions import Benchmark, Question

# fmt: off
SUBTASKS = (
    "boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages",
    "formal_fallacies", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects",
    "logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation",
    "multistep_arithmetic_two", "navigate", "object_counting", "penguins_in_a_table",
    "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks",
    "sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects", "web_of_lies",
    "word_sorting",
)
# fmt: on
"""The 27 tasks."""

THREE_SHOT = "bbh-three-shot.json"


class Chains(NamedTuple):
    """The worked examples of a task: an instruction, and questions with their chains of thought."""

    instruction: str
    worked: tuple[tuple[str, str], ...]


def load_bbh(config: TaskConfig) -> Material:
    """Loads BIG-Bench-Hard.

    Args:
        config: The task. Its path is the published archive, or a folder, that holds `<task>.json` for each task and
            their worked examples in `cot-prompts/<task>.txt` or in `bbh-three-shot.json`; or a Hugging Face data set
            with a configuration for each task, whose worked examples `shots_path` has.

    Returns:
        Its questions, as many of each task as far as there are. A validation example is one of the three worked
        examples, asked with the other two before it, as in LESS; test questions are those of the task.

    Raises:
        TaskError: A file is missing or not as published, or a task is unknown.
    """
    path = config.path or ""
    source = local_path(path)
    files = _files(source) if source is not None else {}
    if config.shots_path is not None:
        files |= _files(local_file(config.shots_path, "task.shots_path"))
    chains = _chains(files, path)
    every = [task for task in SUBTASKS if source is None or f"{task}.json" in files]
    if not every:
        raise TaskError(f"{path}: holds no file of a task, such as {SUBTASKS[0]}.json")
    subtasks = choose(config.subtasks, every, "task.subtasks", path)
    validation: dict[str, list[Question]] = {}
    asked: dict[str, list[Question]] = {}
    for subtask in subtasks:
        if subtask not in chains:
            raise TaskError(
                f"{path}: has no worked examples of {subtask}: set task.shots_path to the file {THREE_SHOT}, or to the "
                "folder cot-prompts of the published repository"
            )
        instruction, worked = chains[subtask]
        shots = first_shots(
            [_shot(*pair) for pair in worked], 3 if config.shots is None else config.shots, f"{path}, {subtask}"
        )
        blank = Question("", subtask, "", "A:", (), preamble=f"{instruction}\n\n")
        validation[subtask] = [
            blank._replace(
                id=f"bbh-{subtask}-shot-{number}",
                prompt=f"Q: {question}",
                answers=(conclusion(chain),),
                reference=f" {chain}",
                shots=tuple(_shot(*pair) for pair in worked[:number] + worked[number + 1 :]),
            )
            for number, (question, chain) in enumerate(worked)
        ]
        pairs = _pairs(files, path, subtask) if source is not None else _hub_pairs(path, subtask)
        asked[subtask] = [
            blank._replace(
                id=f"bbh-{subtask}-{number}", prompt=f"Q: {question}", answers=(answer,), shots=shots,
                reference=f" So the answer is {answer}.",
            )
            for number, (question, answer) in enumerate(pairs)
        ]  # fmt: skip
    questions = in_turn(asked, config.n_test)
    benchmark = Benchmark(
        "bbh", tuple(questions), "bbh", config.max_new_tokens or 512, stops=("\n\nQ:", "\nQ:", "<|user|>")
    )
    return Material(
        named("bbh", subtasks, every, "tasks"),
        tuple(in_turn(validation, config.n_validation)),
        tuple(_stated(question) for question in questions),
        benchmark,
    )


def _stated(question: Question) -> Question:
    """A test question with a model answer: of most only the result is published, so the label is that alone."""
    answer = question.answers[0]
    return question._replace(opening="A: Let's think step by step.\nSo the answer is", reference=f" {answer}.")


def _shot(question: str, chain: str) -> str:
    return f"Q: {question}\nA: {chain}\n\n"


def _files(source: Path) -> dict[str, bytes]:
    """Content of the files of a folder or archive, or of a file, by name."""
    if source.is_dir():
        wanted = [file for file in sorted(source.rglob("*")) if re.search(r"\.(json|txt)(\.gz)?$", file.name)]
        return {file.name.removesuffix(".gz"): file_bytes(file) for file in wanted}
    if not re.search(r"\.(tar|tgz|tar\.\w+)$", source.name):
        return {source.name.removesuffix(".gz"): file_bytes(source)}
    try:
        with tarfile.open(fileobj=io.BytesIO(source.read_bytes())) as archive:
            members = [(Path(member.name).name, archive.extractfile(member)) for member in archive if member.isfile()]
            return {name: content.read() for name, content in members if content and name.endswith((".json", ".txt"))}
    except (OSError, EOFError, tarfile.TarError) as error:
        raise TaskError(f"{source}: cannot be read as an archive ({error}): fetch it again") from None


def _chains(files: dict[str, bytes], path: str) -> dict[str, Chains]:
    """The worked examples of each task there are."""
    texts = {}
    if THREE_SHOT in files:
        texts = parsed_json(files[THREE_SHOT], THREE_SHOT)
        if not (isinstance(texts, dict) and all(isinstance(text, str) for text in texts.values())):
            raise TaskError(f"{path}, {THREE_SHOT}: expected the worked examples of each task as a text")
    for name, content in files.items():
        if name.endswith(".txt") and name.removesuffix(".txt") in SUBTASKS:
            # Above the line of dashes stands a warning against training on the file.
            text = content.decode("utf-8", "replace").replace("\r\n", "\n")
            texts.setdefault(name.removesuffix(".txt"), text.rpartition("-----\n")[2])
    return {task: _parsed(text, f"{path}, worked examples of {task}") for task, text in texts.items()}


def _parsed(text: str, place: str) -> Chains:
    instruction, *examples = text.strip().split("\n\nQ: ")
    pairs = [example.partition("\nA: ") for example in examples]
    if not pairs or not all(mark for _, mark, _ in pairs):
        raise TaskError(f"{place}: expected an instruction and examples of lines that begin with Q: and A:")
    return Chains(instruction.strip(), tuple((question, chain.strip()) for question, _, chain in pairs))


def _pairs(files: dict[str, bytes], path: str, subtask: str) -> list[tuple[str, str]]:
    place = f"{path}, {subtask}.json"
    content = parsed_json(files[f"{subtask}.json"], place)
    try:
        return [(str(example["input"]), str(example["target"])) for example in content["examples"]]
    except (KeyError, TypeError):
        raise TaskError(f"{place}: expected `examples`, each with `input` and `target`") from None


def _hub_pairs(path: str, subtask: str) -> list[tuple[str, str]]:
    return [(row.text("input"), row.text("target")) for row in hub_rows(f"{path}:{subtask}", "test")]
