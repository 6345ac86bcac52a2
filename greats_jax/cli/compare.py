"""`greats compare`."""

import shlex
import shutil
import sys
import textwrap
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from greats_jax.cli.config_help import attribute_docs
from greats_jax.cli.console import duration
from greats_jax.cli.program import program
from greats_jax.cli.stopping import stop_on_signals
from greats_jax.cli.tables import aligned
from greats_jax.errors import GreatsError
from greats_jax.experiments.comparison import run_comparison
from greats_jax.experiments.comparison_config import ComparisonConfig, load_comparison
from greats_jax.experiments.comparison_plan import Plan, PlannedRun, plan_comparison
from greats_jax.experiments.report import write_report
from greats_jax.experiments.summary import found, tables, write_summary_file
from greats_jax.experiments.tidy import PLAIN_TABLE, TABLE
from greats_jax.experiments.verdict import verdict
from greats_jax.experiments.wording import failures, variants
from greats_jax.training.events import Evaluated, Event, Noticed, Started, Stepped

_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}{postfix}"


def compare(config_path: str, overrides: Sequence[str]) -> int:
    """Make the runs of a comparison, and end with its table. Exit code 1 where a run has failed."""
    plan = plan_comparison(load_comparison(config_path, overrides))
    view = ComparisonView()
    try:
        with stop_on_signals() as stop:
            ended = run_comparison(plan, view, stop.requested)
    finally:
        view.close()
    if ended.finished:
        print(_found(plan))
        for path in _files(plan, whole=not ended.stopped):
            print(path)
    for line in failures(ended.failed):
        print(f"greats: {line}", file=sys.stderr)
    if ended.stopped:
        again = shlex.join([*program(), "compare", config_path, *overrides])
        print(f"greats: stopped after {ended.finished} of {len(plan.runs)} runs; go on with: {again}", file=sys.stderr)
    return 1 if ended.failed else 0


def describe_comparison() -> str:
    """Every key of a comparison file, one entry each."""
    lines = ["keys of a comparison, in CONFIG or as KEY=VALUE; those of the training as set.KEY=VALUE:"]
    for key, text in attribute_docs(ComparisonConfig).items():
        if key != "file":
            lines += [f"  {key}", *textwrap.wrap(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)]
    return "\n".join(lines) + "\n"


def _found(plan: Plan) -> str:
    """Tables and verdict."""
    manifest, every = found(plan.folder)
    shown = [f"{title}\n{aligned(rows)}" if title else aligned(rows) for title, rows in tables(every)]
    return "\n" + "\n\n".join([*shown, *variants(manifest.variants), verdict(every, manifest.asked)]) + "\n"


def _files(plan: Plan, whole: bool) -> list[Path]:
    """Write summary.md, and the report of a comparison that is whole; everything there is to look at."""
    paths = [plan.folder / TABLE, plan.folder / PLAIN_TABLE, write_summary_file(plan.folder)]
    if not whole:
        return paths
    try:
        report = write_report(plan.folder)
    except GreatsError as error:  # data that are gone, a file in the way: the runs are whole all the same
        print(f"greats: no report was written: {error}", file=sys.stderr)
        return paths
    if report.missing:
        print(f"greats: {report.missing}", file=sys.stderr)
    return [*paths, report.html]


class ComparisonView:
    """One bar over the updates of all runs in a terminal, and a line for each run elsewhere.

    Args:
        stream: Where it is shown; None for standard error.
    """

    def __init__(self, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._bar: tqdm | None = None
        self._runs = self._ended = 0
        self._updates: dict[str, int] = {}  # of each run, where they are known
        self._waiting: dict[str, None] = {}  # runs that have not ended
        self._done = 0  # updates of the current run, made by this call
        self._paces: deque[tuple[float, int]] = deque()  # seconds and updates of the last runs
        self._run_clock = time.monotonic()
        self._name, self._first, self._last = "", None, None
        self._step = self._went_on_after = 0
        self._notices: set[str] = set()

    def begun(self, plan: Plan, finished: int) -> None:
        """The comparison goes on after so many finished runs."""
        self._runs, self._ended = len(plan.runs), finished
        self._updates = {run.name: run.config.steps or 0 for run in plan.runs}
        self._waiting = {run.name: None for run in plan.runs}
        self._paces = deque(maxlen=len(plan.methods))  # what the first seed compiles, the others do not
        methods = _counted(len(plan.methods), "method")
        seeds = _counted(len({run.seed for run in plan.runs}), "seed")
        settings = f" x {len(plan.settings)} settings" if len(plan.settings) > 1 else ""
        before = f"; {finished} have finished before" if finished else ""
        self._say(f"{plan.folder}: {methods} x {seeds}{settings} = {self._runs} runs{before}")
        if self._stream.isatty() and finished < self._runs:
            size = shutil.get_terminal_size()
            total = sum(self._updates.values())
            self._bar = tqdm(total=total, file=self._stream, bar_format=_BAR, ncols=size.columns, nrows=size.lines)

    def run_begun(self, run: PlannedRun) -> "ComparisonView":
        """A run begins; what it reports comes to `record`."""
        for name in list(self._waiting):
            if name == run.name:
                break
            self._waiting.pop(name)  # it had finished, or failed
            if self._bar is not None:
                self._bar.update(self._updates[name])
        self._name, self._first, self._last = run.name, None, None
        self._done, self._step, self._run_clock = 0, 0, time.monotonic()
        self._refresh("loading")
        return self

    def record(self, event: Event) -> None:
        """Show what the current run reports."""
        match event:
            case Started():
                self._step = self._went_on_after = event.done
                self._updates[self._name] = event.steps
                for name, steps in self._updates.items():  # those whose number of updates follows from the data
                    self._updates[name] = steps or event.steps
                if self._bar is not None:
                    self._bar.total = sum(self._updates.values())
                    self._bar.update(event.done)
            case Stepped(step, _):
                self._done += step - self._step
                if self._bar is not None:
                    self._bar.update(step - self._step)
                self._step = step
                self._refresh(f"update {step}")
            case Evaluated(step, metrics):
                self._first = self._first or metrics
                self._last = metrics
                self._refresh(f"update {step}")
            case Noticed(text):
                # What is true of the data is told by every run alike.
                if not text.startswith("compiling") and text not in self._notices:
                    self._notices.add(text)
                    self._say(f"{self._name}: {text}")

    def run_ended(self, run: PlannedRun, failure: str | None) -> None:
        """Say in one line how a run ended."""
        self._ended += 1
        self._waiting.pop(run.name, None)
        if self._bar is not None:
            self._bar.update(self._updates[run.name] - self._step)  # of one that failed, what will not be made
        took = duration(time.monotonic() - self._run_clock)
        if self._done:
            self._paces.append((time.monotonic() - self._run_clock, self._done))
            self._done = 0
        if failure is not None:
            self._say(f"{run.name}: failed after {took}: {failure}")
            return
        self._say(f"[{self._ended}/{self._runs}] {run.name}: {self._perplexities()} in {took}; {self._left()}")

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _perplexities(self) -> str:
        split = "test" if _known(self._last, "test_perplexity") else "validation"
        before, after = (_shown(metrics, f"{split}_perplexity") for metrics in (self._first, self._last))
        return f"{split} perplexity {after}" if self._went_on_after else f"{split} perplexity {before} -> {after}"

    def _refresh(self, doing: str) -> None:
        if self._bar is not None:
            shown = _shown(self._last, "validation_perplexity")
            self._bar.set_postfix_str(f"{self._name} {doing}, ppl {shown}, {self._left()}")

    def _left(self) -> str:
        """Time left by the pace of the last runs, loading and compilation included."""
        now = (time.monotonic() - self._run_clock, self._done) if self._done else (0.0, 0)
        seconds, updates = (sum(part) for part in zip(now, *self._paces, strict=True))
        if not updates:
            return "time left unknown"
        to_do = sum(self._updates[name] for name in self._waiting) - (self._step if self._name in self._waiting else 0)
        return f"{duration(seconds / updates * max(0, to_do))} left"

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _known(metrics: dict[str, Any] | None, name: str) -> bool:
    return metrics is not None and metrics.get(name) is not None and metrics[name] == metrics[name]


def _shown(metrics: dict[str, Any] | None, name: str) -> str:
    return f"{metrics[name]:.4g}" if metrics is not None and _known(metrics, name) else "-"
