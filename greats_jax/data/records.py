"""Records of a source: files found, read and parsed, each record with the place it came from."""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from greats_jax.data.config import BadRecordPolicy, SourceConfig
from greats_jax.data.files import SUFFIXES, Row, kind_of, read_rows, stem_of
from greats_jax.data.formats import BadRecord, Record, parse_record
from greats_jax.errors import DataError

_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.-]+)?$")


class LoadedRecord(NamedTuple):
    """A record with its origin.

    Attributes:
        record: What it says.
        original: Its fields as read.
        file: File or data set it came from.
        line: Its line or row there, from 1.
        source: Name of its source in reports.
    """

    record: Record
    original: dict[str, Any]
    file: str
    line: int
    source: str

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.file}, line {self.line}"


class LoadedRecords(NamedTuple):
    """What a source held.

    Attributes:
        records: The usable records in order.
        skipped: Number of unusable records per source name (only where they are skipped).
        first_fault: Place and reason of the first one skipped.
    """

    records: list[LoadedRecord]
    skipped: dict[str, int]
    first_fault: str | None


def load_records(source: SourceConfig, on_bad_record: BadRecordPolicy = "stop") -> LoadedRecords:
    """Loads the records of a source.

    Args:
        source: The source.
        on_bad_record: Whether a record that cannot be used stops the loading or is skipped and counted.

    Returns:
        The records. Cost: the whole source in memory.

    Raises:
        DataError: A file is missing, empty or damaged; the hub cannot be reached; or, under "stop", a record cannot be
            used. The message has file, line and reason.
    """
    records: list[LoadedRecord] = []
    skipped: dict[str, int] = {}
    first_fault = None
    for file, label, rows in _tables(source):
        empty = True
        for row in rows:
            empty = False
            try:
                if row.value is None:
                    raise BadRecord(row.fault or "")
                record = parse_record(row.value, source.format)
                name = _label(row.value, source, label)
            except BadRecord as fault:
                message = f"{file}, line {row.line}: {fault}"
                if on_bad_record == "stop":
                    advice = "correct or remove the record, or set data.on_bad_record to skip"
                    raise DataError(f"{message}; {advice}") from None
                skipped[label] = skipped.get(label, 0) + 1
                first_fault = first_fault or message
                continue
            records.append(LoadedRecord(record, row.value, file, row.line, name))
        if empty:
            raise DataError(f"{file}: holds no record: leave it out of the sources or fill it")
    return LoadedRecords(records, skipped, first_fault)


def _label(value: dict[str, Any], source: SourceConfig, label: str) -> str:
    if source.label_field is None:
        return label
    name = value.get(source.label_field)
    if name is None or isinstance(name, dict | list):
        raise BadRecord(f"no field {source.label_field!r} to name its source (label_field)")
    return str(name)


def _tables(source: SourceConfig) -> Iterator[tuple[str, str, Iterator[Row]]]:
    """Yields (file or data set, name in reports, its rows)."""
    files = find_files(source.path)
    if files is None:
        name = source.name or source.path.split(":")[0].split("/")[-1]
        yield source.path, name, _read_hub(source)
        return
    for file in files:
        yield str(file), source.name or stem_of(file), read_rows(file)


def find_files(path: str) -> list[Path] | None:
    """Finds the data files that a path means.

    Args:
        path: A file, a folder (searched with its subfolders; for .txt only where it holds nothing else), a pattern, or
            a Hugging Face data set.

    Returns:
        The files in alphabetical order, or None where the path is not a local one but may be a data set's id.

    Raises:
        DataError: There is nothing of a known kind at the path.
    """
    # Looking up the home of a user with control characters in the name would raise.
    here = Path(os.path.expanduser(path) if path.isprintable() else path)
    if os.path.isdir(here):  # unlike Path's, these say no to a name that no file can have
        every = sorted(file for file in here.rglob("*") if file.is_file() and kind_of(file))
        # Beside other data a text file is a licence or a note.
        files = [file for file in every if kind_of(file) != ".txt"] or every
        if not files:
            raise DataError(f"{path}: the folder holds no data file ({', '.join(SUFFIXES)}, each also with .gz)")
        return files
    if os.path.exists(here):
        return [here]
    if glob.has_magic(path):
        files = sorted(Path(name) for name in glob.glob(str(here), recursive=True) if Path(name).is_file())
        if not files:
            raise DataError(f"{path}: no file fits the pattern: correct it (it is read from {Path.cwd()})")
        return files
    if _HUB_ID.match(path) and kind_of(here) is None and not path.startswith("."):
        return None
    raise DataError(f"{path}: no such file or folder: correct the path (it is read from {Path.cwd()})")


def load_hub_split(path: str, split: str) -> Any:
    """Loads one split of a Hugging Face data set.

    Args:
        path: `owner/name` or `owner/name:configuration`.
        split: Name of the split, such as `train` or `train[:1000]`.

    Returns:
        A `datasets.Dataset`: a sequence of dictionaries.

    Raises:
        DataError: It cannot be loaded: no such data set, no network, or no such split.
    """
    import datasets  # a slow import that local files do not need

    name, _, configuration = path.partition(":")
    try:
        return datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:  # the hub's client raises a dozen kinds; each means the same to the user
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{path}: neither a local file or folder nor a Hugging Face data set that could be loaded with split "
            f"{split!r} ({type(error).__name__}: {reason}): correct the name, or download it and give the path"
        ) from None


def _read_hub(source: SourceConfig) -> Iterator[Row]:
    for number, value in enumerate(load_hub_split(source.path, source.split), start=1):
        yield Row(number, dict(value))
