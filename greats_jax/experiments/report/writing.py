"""The files of a report."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from greats_jax.errors import RunError
from greats_jax.experiments.report.building import build_report
from greats_jax.experiments.report.document import Report, charts_of
from greats_jax.experiments.report.page import page
from greats_jax.experiments.report.pictures import write_pngs

_MARK = b'<meta name="generator" content="greats-jax'
_HEAD = 2000  # bytes in which that stands


class Written(NamedTuple):
    """What was written.

    Attributes:
        html: The file to open.
        pngs: The charts one by one.
        missing: Why there are no pictures; "" where there are.
    """

    html: Path
    pngs: tuple[Path, ...]
    missing: str


def write_report(folders: Path | Sequence[Path], output: Path | None = None) -> Written:
    """Write a report of runs and comparisons.

    Args:
        folders: Run folders, folders of comparisons, or folders that hold run folders.
        output: The HTML file; unset, report.html in the folder if there is one, and here if there are several. The
            charts go to the folder of its name with _files in the place of .html. An earlier report is replaced.

    Raises:
        RunError: There is nothing to report, or the files cannot be written, or what is there is no report.
    """
    folders = [folders] if isinstance(folders, Path) else list(folders)
    html = output or (folders[0] / "report.html" if len(folders) == 1 else Path("report.html"))
    _check_free(html)
    return write_built(build_report(folders), html)


def write_built(report: Report, html: Path) -> Written:
    """Write a report that has been built.

    Raises:
        RunError: The files cannot be written.
    """
    text = page(report, datetime.date.today().isoformat())
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{html}: the report cannot be written ({error.strerror or error})") from None
    try:
        return Written(html, tuple(write_pngs(charts_of(report), html.with_name(f"{html.stem}_files"))), "")
    except RunError as missing:
        return Written(html, (), str(missing))


def _check_free(html: Path) -> None:
    try:
        with html.open("rb") as file:
            ours = _MARK in file.read(_HEAD)
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"{html}: the report cannot be written ({error.strerror or error})") from None
    if not ours:
        raise RunError(f"{html}: exists and is no report of greats; name another file with --output")
