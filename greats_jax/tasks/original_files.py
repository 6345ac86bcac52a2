"""Files and hub data sets that benchmarks are published as, read into rows that know where they came from."""

import gzip
import json
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from greats_jax.data import load_hub_split
from greats_jax.data.files import is_unicode, kind_of, read_rows, stem_of
from greats_jax.errors import DataError, TaskError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


class Placed(NamedTuple):
    """Fields of a row, and the file and line they stand in, for messages."""

    place: str
    fields: dict[str, Any]

    def text(self, name: str) -> str:
        """The text of a field.

        Raises:
            TaskError: There is no such field, or it is no text.
        """
        value = self.fields.get(name)
        if not isinstance(value, str):
            found = "is missing" if name not in self.fields else f"is {type(value).__name__}, not text"
            shown = " ".join(", ".join(map(str, self.fields)).split())[:200]
            raise TaskError(f"{self.place}: the field {name!r} {found}: the fields are {shown}")
        return value


class Splits(NamedTuple):
    """Rows to learn from (validation examples and worked examples) and rows to be asked.

    Attributes:
        learn: The former.
        test: The latter.
        first_test: Number of the first of them in their file, from 0: not 0 where rows before it are learned from.
    """

    learn: list[Placed]
    test: list[Placed]
    first_test: int = 0


def local_path(path: str) -> Path | None:
    """The file or folder that task.path means, or None where it may be the name of a Hugging Face data set.

    Raises:
        TaskError: It is neither.
    """
    here = _expanded(path)
    if os.path.exists(here):
        return here
    if _HUB_ID.fullmatch(path) and not path.startswith(".") and kind_of(here) is None:
        return None
    raise TaskError(f"{path}: no such file or folder: correct task.path (it is read from {Path.cwd()})")


def local_file(path: str, key: str) -> Path:
    """The file or folder that a setting means which takes no Hugging Face data set.

    Args:
        path: The setting's value.
        key: Its name, for the message.

    Raises:
        TaskError: There is none.
    """
    here = _expanded(path)
    if not os.path.exists(here):
        raise TaskError(f"{path}: no such file: correct {key} (it is read from {Path.cwd()})")
    return here


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path) if path.isprintable() else path)


def hub_rows(path: str, split: str) -> list[Placed]:
    """Rows of a split of a Hugging Face data set, `owner/name` or `owner/name:configuration`.

    Raises:
        TaskError: It cannot be loaded.
    """
    try:
        rows = load_hub_split(path, split)
    except DataError as error:
        raise TaskError(str(error)) from None
    return [Placed(f"{path}, {split} row {number}", dict(row)) for number, row in enumerate(rows, start=1)]


def file_rows(file: Path) -> list[Placed]:
    """Rows of a data file: JSON lines, JSON, CSV, TSV or Parquet, each also compressed with gzip.

    Raises:
        TaskError: The file or one of its rows cannot be read.
    """
    rows = []
    try:
        for row in read_rows(file):
            if row.value is None:
                raise TaskError(f"{file}, line {row.line}: {row.fault}: correct or remove the line")
            rows.append(Placed(f"{file}, line {row.line}", row.value))
    except DataError as error:
        raise TaskError(str(error)) from None
    return rows


def file_bytes(file: Path) -> bytes:
    """The content of a file, unpacked where its name ends with .gz.

    Raises:
        TaskError: It cannot be read.
    """
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if file.name.lower().endswith(".gz") else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TaskError(f"{file}: damaged or cut-off gzip file ({error}): fetch it again") from None
    except OSError as error:
        raise TaskError(f"{file}: cannot be read: {error.strerror or error}") from None


def parsed_json(content: bytes, place: str) -> Any:
    """The value of a JSON text.

    Raises:
        TaskError: It is not valid JSON in UTF-8.
    """
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{place}: not valid JSON in UTF-8 ({str(error)[:100]}): fetch the file again") from None
    if not is_unicode(value):
        raise TaskError(f"{place}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")
    return value


def files_of_split(folder: Path, words: Sequence[str]) -> list[Path]:
    """The data files of a folder, searched with its subfolders, whose names hold a word such as `test`.

    Args:
        folder: The folder.
        words: Names of the split, of which the first that any file has is looked for.

    Returns:
        One file, the parts of one data set (`test-00000-of-00002.parquet`) in order, or none.

    Raises:
        TaskError: Several files fit that are not parts of one.
    """
    every = [file for file in sorted(folder.rglob("*")) if file.is_file() and kind_of(file) not in (None, ".txt")]
    for word in words:
        fitting = [file for file in every if word in re.split(r"[\W_]+", stem_of(file).lower())]
        wholes = {(file.parent, re.sub(r"\d+-of-\d+", "", file.name)) for file in fitting}
        if len(wholes) > 1:
            shown = ", ".join(str(file.relative_to(folder)) for file in fitting[:4])
            raise TaskError(f"{folder}: several files could be the {word} split ({shown}): name the files themselves")
        if fitting:
            return fitting
    return []


def read_splits(
    path: str, test_path: str | None, learn: Sequence[str], learn_limit: int, test_limit: int, hub_configuration: str
) -> Splits:
    """Reads a task that is a table of rows.

    Args:
        path: A Hugging Face data set; a folder with a file for each split; or one file. Where there is no file to
            learn from, the first rows of the test file are that, and are not tested on.
        test_path: The test file, where it is not in `path`.
        learn: Names of the split to learn from in the order of preference, as the hub and file names have them.
        learn_limit: Number of rows to learn from.
        test_limit: Greatest number of test rows.
        hub_configuration: Configuration of the hub's data set, "" for none.

    Raises:
        TaskError: A file is missing or cannot be read, or there are too few rows.
    """
    folder = local_path(path)
    test_file = None if test_path is None else local_file(test_path, "task.test_path")
    if folder is None:
        name = path if ":" in path or not hub_configuration else f"{path}:{hub_configuration}"
        asked = hub_rows(name, f"test[:{test_limit}]") if test_file is None else file_rows(test_file)[:test_limit]
        return Splits(hub_rows(name, f"{learn[0]}[:{learn_limit}]"), asked)
    if folder.is_dir():
        learn_files, test_files = files_of_split(folder, learn), files_of_split(folder, ("test",))
    else:
        learn_files, test_files = ([folder], []) if test_file is not None else ([], [folder])
    if test_file is not None:
        test_files = [test_file]
    if not test_files:
        raise TaskError(f"{folder}: holds no file whose name says test: give task.path the file itself")
    test = [row for file in test_files for row in file_rows(file)]
    if learn_files:
        return Splits([row for file in learn_files for row in file_rows(file)][:learn_limit], test[:test_limit])
    if len(test) <= learn_limit and test_limit:
        raise TaskError(
            f"{test_files[0]}: holds {len(test)} rows, and {learn_limit} are kept for validation and worked examples, "
            "so none is left to test: lower task.n_validation or task.shots, or give the test a file (task.test_path)"
        )
    return Splits(test[:learn_limit], test[learn_limit : learn_limit + test_limit], learn_limit)
