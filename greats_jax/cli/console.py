"""What a user sees of a run: a live bar in a terminal, plain lines elsewhere, and a table at the end."""

import math
import shutil
import sys
from typing import Any, TextIO

from tqdm import tqdm

from greats_jax.cli.tables import aligned
from greats_jax.training.events import Evaluated, Event, Noticed, Started, Stepped
from greats_jax.training.summary import task_scores

_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}{postfix}"

_PLAIN_LINES = 40  # a run prints about this many, however long it is

_REASONS = {
    "bad": "broken",
    "no_labels": "without any label",
    "cut_away": "with no label within data.max_length",
    "held_out": "held out for the target task",
    "in_target": "also in the target task",
}
"""Words for why records are not in the pool."""


class Console:
    """A tracker that shows progress on a stream."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._bar: tqdm | None = None
        self._steps = 0
        self._seconds: list[float] = []
        self._perplexity: float | None = None

    def record(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Started():
                self._start(event)
            case Stepped(step, metrics):
                self._step(step, metrics)
            case Evaluated(step, metrics):
                self._perplexity = metrics["validation_perplexity"]
                scores = "".join(f", {_words(name)} {_number(value)}" for name, value in task_scores(metrics).items())
                self._say(
                    f"step {step}: validation perplexity {_number(metrics['validation_perplexity'])}, "
                    f"test perplexity {_number(metrics['test_perplexity'])}{scores}"
                )
            case Noticed(text):
                self._say(text)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def _start(self, event: Started) -> None:
        self._steps = event.steps
        trained = "adapters" if event.config.lora else "all parameters"
        self._say(
            f"{event.config.model.source}: training {trained}, {event.trainable:,} of {event.total:,} parameters; "
            f"pool of {event.pool:,} examples in {len(event.sources)} source{'s' * (len(event.sources) != 1)}; "
            f"{event.validation} validation and {event.test} test examples"
        )
        for source, reasons in event.dropped.items():
            for reason, count in reasons.items():
                self._say(f"{source}: {count:,} records left out: {_REASONS.get(reason, reason)}")
        if event.done:
            self._say(f"going on after update {event.done} of {event.steps}")
        if self._live:
            # Asked here and not by tqdm, which draws nothing where a terminal reports a size of 0 (some containers do).
            size = shutil.get_terminal_size()
            self._bar = tqdm(
                total=event.steps,
                initial=event.done,
                file=self._stream,
                bar_format=_BAR,
                ncols=size.columns,
                nrows=size.lines,
            )

    def _step(self, step: int, metrics: dict[str, float]) -> None:
        loss, rate = metrics["loss"], metrics["tokens_per_second"]
        if not metrics["compiled"]:
            self._seconds.append(metrics["seconds"])
        if self._bar is not None:
            shown = f"loss {loss:.3f}, ppl {_number(self._perplexity)}, {rate:.0f} tok/s, {self._left(step)}"
            self._bar.set_postfix_str(shown, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step == 1 or step == self._steps or step % max(1, self._steps // _PLAIN_LINES) == 0:
            self._say(
                f"step {step}/{self._steps}  loss {loss:.3f}  validation perplexity {_number(self._perplexity)}  "
                f"{rate:.0f} tokens/s  {self._left(step)}"
            )

    def _left(self, step: int) -> str:
        """Time left by the pace of the last updates; compilations, which are behind us, do not count."""
        if step == self._steps:
            return "done"
        recent = self._seconds[-20:]
        return f"{duration(sum(recent) / len(recent) * (self._steps - step))} left" if recent else "time left unknown"

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)


def closing_table(summary: dict[str, Any]) -> str:
    """Before and after, share of each source, and throughput, as aligned text."""
    before, after = summary["before"] or {}, summary["after"] or {}
    rows = [("", "before", "after")]
    for split in ("validation", "test"):
        name = f"{split}_perplexity"
        rows.append((f"{split} perplexity", _number(before.get(name)), _number(after.get(name))))
    rows += [
        (_words(name), _number(before.get(name)), _number(after.get(name))) for name in task_scores(before | after)
    ]
    parts = [aligned(rows)]
    if sources := summary["sources"]:
        rows = [("source", "of candidates", "of chosen", "ratio")]
        for name, share in sources.items():
            ratio = share["chosen_share"] / share["candidate_share"]
            rows.append((name, f"{share['candidate_share']:.1%}", f"{share['chosen_share']:.1%}", f"{ratio:.2f}"))
        parts.append(aligned(rows))
    if throughput := summary["throughput"]:
        spent = throughput.get("seconds_selecting", 0.0)
        selecting = f" (about {spent:.2f} s of it selecting)" if spent else ""
        parts.append(
            f"{throughput['seconds']:.2f} s per update{selecting}, "
            f"{throughput['tokens_per_second']:.0f} candidate tokens/s, "
            f"{throughput['examples_per_second']:.1f} candidates/s; {duration(summary['seconds'])} in all updates"
        )
    if faults := _faults(summary):
        parts.append(faults)
    return "\n\n".join(parts)


def _faults(summary: dict[str, Any]) -> str:
    """What went wrong on the way, or nothing."""
    lines = []
    if skipped := summary.get("skipped"):
        some = (
            "every update was" if skipped >= summary["steps"] else f"{skipped:,} of {summary['steps']:,} updates were"
        )
        lines.append(f"warning: {some} skipped, for want of a candidate or validation row with a finite loss")
    if spikes := summary.get("loss_spikes"):
        lines.append(f"warning: the loss of {spikes:,} of {summary['steps']:,} updates was far above those before")
    for key, what in (("rejected_candidates", "candidates"), ("rejected_validation", "validation rows")):
        if count := summary.get(key):
            lines.append(f"warning: {count:,} {what} were left out because their loss or gradient was not finite")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}" if value < 1000 else f"{value:.4g}"


def _words(name: str) -> str:
    """`mmlu/test_exact_match` as `mmlu test exact match`."""
    return name.replace("/", " ").replace("_", " ")
