"""Curves of a run as PNG files; matplotlib is the extra `plots`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from greats_jax.errors import RunError

Record = Mapping[str, Any]


def figure_class() -> type[Any]:
    """Matplotlib's Figure, which needs no pyplot: no global state, no display, safe inside a user's notebook.

    Raises:
        RunError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RunError("no pictures were drawn: run pip install matplotlib") from None
    return Figure


@contextmanager
def plain_text() -> Iterator[None]:
    """Draw what is written as it is: a dollar sign in the name of a source or a run begins no formula.

    Raises:
        RunError: matplotlib is not installed.
    """
    figure_class()
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):
        yield


def plot_run(metrics: Sequence[Record], sources: Mapping[str, Record], folder: Path) -> list[Path]:
    """Draw training loss, perplexity and the share of each source.

    Args:
        metrics: Records of metrics.jsonl.
        sources: Shares by source, from `summary.source_shares`.
        folder: Where the files go; created when needed.

    Returns:
        The files written.

    Raises:
        RunError: matplotlib is not installed, or the files cannot be written.
    """
    make_figure = figure_class()
    drawings = {
        "loss.png": lambda axes: _draw_loss(axes, [r for r in metrics if r["event"] == "step"]),
        "perplexity.png": lambda axes: _draw_perplexity(axes, [r for r in metrics if r["event"] == "evaluation"]),
        "sources.png": lambda axes: _draw_sources(axes, sources),
    }
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with plain_text():
            for name, draw in drawings.items():
                figure = make_figure(figsize=(6.4, 4.0), layout="constrained")
                draw(figure.subplots())
                figure.savefig(folder / name, dpi=150)
                paths.append(folder / name)
    except OSError as error:
        raise RunError(f"{folder}: the curves cannot be written ({error.strerror or error})") from None
    return paths


def _draw_loss(axes: Any, steps: Sequence[Record]) -> None:
    numbers = [record["step"] for record in steps]
    # A missing value (a skipped step) is a gap in the line.
    axes.plot(numbers, [_or_gap(record["loss"]) for record in steps], label="kept examples")
    if any(record["candidate_loss"] is not None for record in steps):  # not every rule looks at all of them
        axes.plot(numbers, [_or_gap(record["candidate_loss"]) for record in steps], label="all candidates", alpha=0.6)
    axes.set(xlabel="update", ylabel="loss (nats per label token)", title="Training loss")
    axes.legend()


def _draw_perplexity(axes: Any, evaluations: Sequence[Record]) -> None:
    numbers = [record["step"] for record in evaluations]
    for split in ("validation", "test"):
        values = [_or_gap(record.get(f"{split}_perplexity")) for record in evaluations]
        axes.plot(numbers, values, marker="o", label=split)
    # Perplexity is an exponential: on a linear axis the first drop hides everything after it.
    axes.set(xlabel="update", ylabel="perplexity (log scale)", title="Target task", yscale="log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else "")
    axes.legend()


def _draw_sources(axes: Any, sources: Mapping[str, Record]) -> None:
    names = list(sources)[::-1]
    rows = range(len(names))
    axes.barh([row + 0.2 for row in rows], [sources[n]["chosen_share"] for n in names], 0.4, label="of those chosen")
    axes.barh(
        [row - 0.2 for row in rows], [sources[n]["candidate_share"] for n in names], 0.4, label="of the candidates"
    )
    axes.set_yticks(list(rows), names)
    axes.set(xlabel="share", title="Where the model learned from")
    axes.legend()


def _or_gap(value: float | None) -> float:
    return float("nan") if value is None else value
