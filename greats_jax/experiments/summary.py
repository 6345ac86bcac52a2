"""A comparison's tables and verdict, as cells and as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from greats_jax.experiments.curves import read_curves
from greats_jax.experiments.manifest import Manifest
from greats_jax.experiments.numbers import number
from greats_jax.experiments.outcomes import Outcome, outcomes
from greats_jax.experiments.verdict import verdict
from greats_jax.experiments.wording import failures, is_loss, perplexity, relative, variants, with_limits
from greats_jax.training.run_folder import write_whole

SUMMARY_FILE = "summary.md"

Table = list[tuple[str, ...]]
"""Rows of cells; the first is the head."""


def found(folder: Path) -> tuple[Manifest, list[Outcome]]:
    """What a comparison is made of and what it found so far; no outcome before the first run has finished."""
    manifest = Manifest.load(folder)
    curves = read_curves(folder)
    order = {name: place for place, name in enumerate(manifest.methods)}
    places = {name: place for place, name in enumerate(manifest.settings)}
    curves.sort(key=lambda curve: (places.get(curve.setting, 0), order.get(curve.method, 0), curve.seed))
    return manifest, outcomes(curves, target=manifest.target) if curves else []


def tables(every: Sequence[Outcome]) -> list[tuple[str, Table]]:
    """Title and rows of each table: for each setting the losses, and the other scores where there are any."""
    made = []
    for setting in dict.fromkeys(outcome.setting for outcome in every):
        of_setting = [outcome for outcome in every if outcome.setting == setting]
        made.append((setting, _losses(of_setting)))
        if len(scores := _scores(of_setting)) > 1:
            made.append((f"{setting}, other scores".lstrip(", "), scores))
    return made


def _losses(every: Sequence[Outcome]) -> Table:
    target = every[0].target
    head = (
        "method", "equal updates", "equal time", "equal candidates", "less random_k", "in equal time",
        "less regular", "in equal time", f"reached {target}", "updates", "seconds", "seeds",
    )  # fmt: skip
    rows = [
        (
            outcome.method,
            perplexity(outcome.final),
            perplexity(outcome.equal_seconds),
            perplexity(outcome.equal_candidates),
            relative(outcome.against_random),
            relative(outcome.against_random_in_time),
            relative(outcome.against_regular),
            relative(outcome.against_regular_in_time),
            f"{outcome.reached} of {outcome.aimed}" if outcome.aimed else "-",
            "" if outcome.steps_to_target is None else number(outcome.steps_to_target.mean, 4),
            "" if outcome.seconds_to_target is None else number(outcome.seconds_to_target.mean, 4),
            f"{outcome.n} ({outcome.diverged} diverged)" if outcome.diverged else str(outcome.n),
        )
        for outcome in every
    ]
    return [head, *rows]


def _scores(every: Sequence[Outcome]) -> Table:
    """What else was measured last; losses as perplexities."""
    names = list(dict.fromkeys(name for outcome in every for name in outcome.scores))
    head = ("method", *(name.removesuffix("_loss") + " perplexity" if is_loss(name) else name for name in names))
    rows = [
        (
            outcome.method,
            *(
                ""
                if (value := outcome.scores.get(name)) is None
                else (perplexity if is_loss(name) else with_limits)(value)
                for name in names
            ),
        )
        for outcome in every
    ]
    return [head, *rows] if names else [head]


def write_summary_file(folder: Path) -> Path:
    """Write summary.md: the verdict, the tables, and what is missing from them.

    Raises:
        RunError: The folder holds no comparison, or the file cannot be written.
    """
    manifest, every = found(folder)
    lines = [f"# Comparison {folder.name}", "", verdict(every, manifest.asked), ""]
    for title, rows in tables(every):
        lines += [f"## {title}", ""] if title else []
        lines += [*_markdown(rows), ""]
    lines += [line for text in variants(manifest.variants) for line in (text, "")]
    if every:
        lines += [*_explanation(every).split("\n"), ""]
    if lacks := gaps(manifest):
        lines += ["What is missing:", "", *(f"* {gap}" for gap in lacks), ""]
    path = folder / SUMMARY_FILE
    write_whole(path, "\n".join(lines))
    return path


EXPLANATION = """\
Perplexities are exp of the mean {metric} over seeds, with 95 % bootstrap intervals. "Equal time" reads every curve of a
seed where the fastest of the methods that draw from the pool ended; compilation and evaluation are not training time.
"Less" is the difference of perplexities within seeds in percent, with Student's 95 % interval and the p-value of the
paired t-test; p is adjusted by Holm's method over the methods of its column, each of the four columns by itself;
intervals are not adjusted. All of them are about other seeds, and not about other test examples. "Reached" counts the
seeds whose loss came to the last one of {target}, of those in which that was lower than its first, and then after how
many updates and seconds on average.{diverged}"""

_DIVERGED = """
Seeds that diverged ended without a finite loss; the means and differences of their methods leave them out."""


def _explanation(every: Sequence[Outcome]) -> str:
    diverged = _DIVERGED if any(outcome.diverged for outcome in every) else ""
    return EXPLANATION.format(metric=every[0].metric, target=every[0].target, diverged=diverged)


def gaps(manifest: Manifest) -> list[str]:
    """What was to be run and has not finished, and why."""
    lacking = [run for run in manifest.runs if not run.finished]
    names = [run.folder.name for run in lacking]
    failed = {name: manifest.failed[name] for name in names if name in manifest.failed}
    waiting = len(lacking) - len(failed)
    return [*failures(failed), *([f"{waiting} of {len(manifest.runs)} runs have not been made yet"] if waiting else [])]


def _markdown(rows: Table) -> list[str]:
    made = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return [made[0], f"|---|{'---:|' * (len(rows[0]) - 1)}", *made[1:]]
