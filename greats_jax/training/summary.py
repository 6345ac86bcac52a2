"""How a run went, computed from its records alone."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]


def summarize(metrics: Sequence[Record], selections: Sequence[Record]) -> Record:
    """The numbers of the closing table.

    Args:
        metrics: Records of metrics.jsonl.
        selections: Records of selections.jsonl.

    Returns:
        `steps`; `before` and `after` (first and last evaluation: losses in nats per label token, perplexities);
        `first_loss` and `last_loss` (training loss, mean of the first and last tenth of the updates); `sources`
        (candidates, chosen, and the share of each, by source); `throughput` (medians over updates that compiled
        nothing, so that a short run says what a long one will see); `seconds` of all updates, and `time`, what they and
        the evaluations went into (see `time_split`); how many micro-batches were `skipped`, and how many candidates and
        validation rows were rejected as not finite.
    """
    steps = [record for record in metrics if record["event"] == "step"]
    evaluations = [record for record in metrics if record["event"] == "evaluation"]
    losses = [record["loss"] for record in steps if record["loss"] is not None]
    tenth = max(1, len(losses) // 10)
    return {
        "steps": len(steps),
        "before": evaluations[0] if evaluations else None,
        "after": evaluations[-1] if len(evaluations) > 1 else None,
        "first_loss": statistics.fmean(losses[:tenth]) if losses else None,
        "last_loss": statistics.fmean(losses[-tenth:]) if losses else None,
        "sources": source_shares(selections),
        "throughput": _throughput(steps),
        "seconds": sum(record["seconds"] for record in steps),
        "time": time_split(metrics),
        "skipped": sum(record["skipped"] for record in steps),
        "rejected_candidates": sum(record["rejected_candidates"] for record in steps),
        "rejected_validation": sum(record["rejected_validation"] for record in steps),
    }


def time_split(metrics: Sequence[Record]) -> dict[str, float]:
    """Seconds that a run spent on each kind of work, which add up to all of its updates and evaluations.

    Of one compiled program only the whole can be timed: what selecting took is its share of the FLOPs, of which the
    rule itself is timed alone. A step that was compiled first counts as long as the median of the others.

    Returns:
        `data` (the host waited for a batch), `scoring` (signals), `selection` (the rule), `update` (the rest of a
        step), `evaluation`, and `compiling`.
    """
    steps = [record for record in metrics if record["event"] == "step"]
    steady = [record for record in steps if not record["compiled"]]
    usual = statistics.median(record["seconds"] for record in steady) if steady else None
    parts: dict[str, float] = dict.fromkeys(("data", "scoring", "selection", "update", "evaluation", "compiling"), 0.0)
    for record in steps:
        seconds = record["seconds"]
        if record["compiled"] and usual is not None:
            parts["compiling"] += max(0.0, seconds - usual)
            seconds = min(seconds, usual)
        waiting = min(seconds, record.get("seconds_waiting") or 0.0)
        selecting = min(seconds - waiting, record["seconds_selecting"] or 0.0)
        picking = min(selecting, record.get("seconds_picking") or 0.0)
        parts["data"] += waiting
        parts["scoring"] += selecting - picking
        parts["selection"] += picking
        parts["update"] += seconds - waiting - selecting
    parts["evaluation"] = sum(record["seconds"] for record in metrics if record["event"] == "evaluation")
    return parts


def source_shares(selections: Sequence[Record]) -> dict[str, Record]:
    """How often each source was a candidate and how often it was chosen (kept with a weight above 0).

    Returns:
        By source, most chosen first: counts `candidates` and `chosen`, and `candidate_share` and `chosen_share` of all.
    """
    candidates: Counter[str] = Counter()
    chosen: Counter[str] = Counter()
    for record in selections:
        source_of = dict(zip(record["candidates"], record["sources"], strict=True))
        candidates.update(record["sources"])
        kept = zip(record["chosen"], record["weights"], strict=True)
        chosen.update(source_of[name] for name, weight in kept if weight > 0)
    n_candidates, n_chosen = max(1, candidates.total()), max(1, chosen.total())
    return {
        source: {
            "candidates": candidates[source],
            "chosen": chosen[source],
            "candidate_share": candidates[source] / n_candidates,
            "chosen_share": chosen[source] / n_chosen,
        }
        for source in sorted(candidates, key=lambda name: (-chosen[name], name))
    }


def _throughput(steps: Sequence[Record]) -> Record:
    steady = [record for record in steps if not record["compiled"]] or list(steps)
    names = ("seconds", "seconds_selecting", "tokens_per_second", "examples_per_second")
    values = {name: [record[name] for record in steady if record[name] is not None] for name in names}
    return {name: statistics.median(numbers) for name, numbers in values.items() if numbers}


def task_scores(record: Mapping[str, Any]) -> dict[str, float]:
    """The tasks' own scores in an evaluation record, by their names there: `test_accuracy`, `mmlu-sociology/test_f1`.

    Beside them a record has losses and perplexities of `validation` and `test`.
    """
    losses = ("test_loss", "test_perplexity")
    names = [name for name in record if (last := name.rpartition("/")[2]).startswith("test_") and last not in losses]
    return {name: record[name] for name in names}
