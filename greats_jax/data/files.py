"""Reading of data files: every row with its line number, every fault with file, line and reason."""

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from greats_jax.errors import DataError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")

csv.field_size_limit(2**31 - 1)  # the standard library's 128 KiB is less than one long document


class Row(NamedTuple):
    """One row of a file: its fields, or the reason why it could not be read."""

    line: int
    value: dict[str, Any] | None
    fault: str | None = None


def kind_of(path: Path) -> str | None:
    """The suffix of `SUFFIXES` that a file's name ends with (before .gz), or None."""
    name = path.name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """A file's name without .gz and without the suffix of its format."""
    name = path.name
    for suffix in (".gz", *SUFFIXES):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def read_rows(path: Path) -> Iterator[Row]:
    """Reads a data file.

    Args:
        path: File of a format in `SUFFIXES`, optionally compressed with gzip.

    Yields:
        Its rows in order, faulty ones included. Lines count from 1; in Parquet and JSON arrays it is the row's number.
        A .txt file is one row with one field, `text`.

    Raises:
        DataError: The file is missing, empty, of no known format, damaged, or not text in UTF-8.
    """
    kind = kind_of(path)
    if kind is None:
        raise DataError(f"{path}: unknown kind of file: expected {', '.join(SUFFIXES)}, each also with .gz")
    readers = {
        ".jsonl": _read_jsonl,
        ".json": _read_json,
        ".csv": _read_csv,
        ".tsv": _read_tsv,
        ".parquet": _read_parquet,
        ".txt": _read_document,
    }
    return readers[kind](path)


def _read_bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw
    except FileNotFoundError:
        raise DataError(f"{path}: no such file: correct the path") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged or cut-off gzip file ({error}): fetch or compress it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not content.strip():
        raise DataError(f"{path}: the file is empty: leave it out of the sources or fill it")
    return content


def _read_text(path: Path) -> str:
    content = _read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not text in UTF-8: convert the file (iconv -t UTF-8)") from None


def is_unicode(value: object) -> bool:
    """Whether every text in a JSON value can be written down: JSON can spell half of a surrogate pair, UTF-8 cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _as_row(line: int, value: object) -> Row:
    if not isinstance(value, dict):
        return Row(line, None, f"a JSON {type(value).__name__}, not an object with named fields")
    if not is_unicode(value):
        # Refused here and not where it is used: as an id it would be found only when the first choice is recorded.
        return Row(line, None, "half of a surrogate pair (\\ud800 to \\udfff) in a text, which is no character")
    return Row(line, value)


def _read_jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(_read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield _as_row(number, json.loads(line.decode("utf-8")))
        except UnicodeDecodeError:
            yield Row(number, None, "not text in UTF-8")
        except (ValueError, RecursionError) as error:
            yield Row(number, None, f"not valid JSON ({error})")


def _read_json(path: Path) -> Iterator[Row]:
    text = _read_text(path)
    try:
        value = json.loads(text)
    except RecursionError:
        raise DataError(f"{path}: not valid JSON (nested too deeply)") from None
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{") and "\n" in text.strip():  # often .json is JSON lines by another name
            yield from _read_jsonl(path)
            return
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}): correct the file") from None
    except ValueError as error:  # an integer of thousands of digits
        raise DataError(f"{path}: not valid JSON ({error}): correct the file") from None
    if isinstance(value, dict):
        tables = [field for field in value.values() if isinstance(field, list) and field and isinstance(field[0], dict)]
        is_table = len(tables) == 1 and not {"messages", "conversations", "prompt"} & value.keys()
        value = tables[0] if is_table else [value]
    if not isinstance(value, list):
        raise DataError(f"{path}: holds a JSON {type(value).__name__}: expected a list of records")
    for number, item in enumerate(value, start=1):
        yield _as_row(number, item)


def _read_csv(path: Path) -> Iterator[Row]:
    return _read_table(path, ",")


def _read_tsv(path: Path) -> Iterator[Row]:
    return _read_table(path, "\t")


def _read_table(path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns = [cell.strip() for cell in cells]
                if "" in columns or len(set(columns)) < len(columns):
                    raise DataError(f"{path}, line {reader.line_num}: the first row must name the columns, each once")
            elif len(cells) != len(columns):
                yield Row(reader.line_num, None, f"{len(cells)} cells, but the first row names {len(columns)} columns")
            else:
                yield Row(reader.line_num, dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({error}): correct the file") from None


def _read_parquet(path: Path) -> Iterator[Row]:
    from pyarrow import parquet  # a slow import that other formats do not need

    content = io.BytesIO(_read_bytes(path))
    numbers = itertools.count(1)
    try:
        for batch in parquet.read_table(content).to_batches():
            for value in batch.to_pylist():
                yield Row(next(numbers), value)
    except Exception as error:  # pyarrow's own, and whatever Python makes of a damaged text, name or date
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{path}: damaged Parquet file ({reason}): fetch it again") from None


def _read_document(path: Path) -> Iterator[Row]:
    yield Row(1, {"text": _read_text(path)})
