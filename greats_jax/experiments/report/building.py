"""A report from run folders: what is in it, not yet how it looks."""

import math
from collections.abc import Sequence
from pathlib import Path

from greats_jax.experiments.curves import curve_of
from greats_jax.experiments.numbers import duration, number, percent
from greats_jax.experiments.outcomes import Outcome, headline_metric, outcomes
from greats_jax.experiments.ranking import best_of
from greats_jax.experiments.report.choice import choice_section, choosing
from greats_jax.experiments.report.curve_charts import title_of
from greats_jax.experiments.report.document import Fact, Report, Section
from greats_jax.experiments.report.examples import Texts, read_texts
from greats_jax.experiments.report.expense import expense_section
from greats_jax.experiments.report.members import Member, Members, gather
from greats_jax.experiments.report.picks import by_source, candidacies, mean_shares
from greats_jax.experiments.report.results import curves_section, methods_section
from greats_jax.experiments.report.settings import settings_section, versions_section
from greats_jax.experiments.report.shown_examples import examples_section
from greats_jax.experiments.report.styles import styles_of_methods
from greats_jax.experiments.verdict import verdict
from greats_jax.experiments.wording import exponential, is_loss, perplexity

_MOST_SCORES = 2  # scores of a task among the numbers to see first


def build_report(folders: Sequence[Path]) -> Report:
    """Everything there is to say about some runs.

    Args:
        folders: Run folders, folders of comparisons, or folders that hold run folders.

    Raises:
        RunError: There is no run in a folder, or it is damaged.
    """
    members = gather(folders)
    curves = [curve_of(m.run, m.setting, m.method, m.seed) for m in members.runs]
    metric = headline_metric(curves)
    found = outcomes([curve for curve in curves if metric in curve.metrics], metric, members.target)
    picks = {
        method: [candidacies(m.run.selections) for m in members.runs if m.method == method and m.draws]
        for method in members.methods
    }
    texts = read_texts(members.runs[0].run.config) if choosing(picks) else Texts({}, {}, None, "")
    styles = styles_of_methods(members.methods)
    first = [curves_section(members, curves, styles, metric)]
    if len(members.runs) > 1:
        # Of a changing setting, how the end depends on it is what is asked.
        first.insert(0 if len(members.settings) > 1 else 1, methods_section(found))
    sections: list[Section | None] = [
        *first,
        choice_section(members, picks, texts, styles),
        examples_section(members, picks, texts),
        expense_section(members),
        settings_section(members),
        versions_section(members),
    ]
    if len(members.methods) > 1:
        said, facts = verdict(found, members.asked), _facts_of_methods(members, found)
    else:
        chosen = {method: mean_shares([by_source(run) for run in runs]) for method, runs in choosing(picks).items()}
        said, facts = _in_words(members, found, chosen), _facts_of_run(members, found)
    notes = [Section("notes", "Notes", members.notes)] if members.notes else []
    return Report(
        title=members.title,
        subtitle=_subtitle(members),
        verdict=said,
        facts=facts,
        sections=(*notes, *(section for section in sections if section is not None and section.blocks)),
    )


def _subtitle(members: Members) -> str:
    first = members.runs[0].run
    models = list(dict.fromkeys(member.run.config.model.source for member in members.runs))
    trained = "adapters" if first.config.lora else "all parameters"
    updates = max(len(member.steps) for member in members.runs)
    parts = [Path(models[0]).name if len(models) == 1 else f"{len(models)} models", trained, f"{updates:,} updates"]
    parts.append(f"batches of {first.config.batch} candidates" + _kept(members))
    if len(members.runs) > 1:
        parts.append(f"{len(members.methods)} methods × {len(members.seeds)} seeds")
    return ", ".join(parts)


def _kept(members: Members) -> str:
    keeps = {m.run.config.keep for m in members.runs if m.method in members.asked and m.run.config.keep is not None}
    return f", {keeps.pop()} kept" if len(keeps) == 1 else ""


def _facts_of_methods(members: Members, found: Sequence[Outcome]) -> tuple[Fact, ...]:
    """The first setting's best method that was asked about, beside its controls."""
    setting = found[0].setting
    here = {outcome.method: outcome for outcome in found if outcome.setting == setting}
    asked = [here[method] for method in members.asked if method in here] or list(here.values())
    first = best_of(asked)
    best = asked[0] if first is None else first.outcome
    title = title_of(best.metric)
    where = f" ({setting})" if len(members.settings) > 1 else ""
    facts = []
    for method in dict.fromkeys((best.method, "random_k", "regular")):
        if method in here:
            value = number(exponential(here[method].final.mean), 4)
            facts.append(Fact(f"{title}, {method}{where}", value, _limits(here[method])))
    if best.steps_share is not None and best.method != best.target:
        note = f"of its updates, {best.reached} of {best.aimed} seeds"
        facts.append(Fact(f"To where {best.target} ended{where}", percent(best.steps_share.mean, 0), note))
    scores = [name for name in best.scores if name.startswith("test_") and not is_loss(name)]
    for name in scores[:_MOST_SCORES]:
        others = [here[m] for m in ("random_k", "regular") if m in here and m != best.method and name in here[m].scores]
        beside = ", ".join(f"{other.method} {number(other.scores[name].mean)}" for other in others)
        facts.append(Fact(f"{title_of(name)}, {best.method}{where}", number(best.scores[name].mean), beside))
    return tuple(facts)


def _limits(outcome: Outcome) -> str:
    low, high = (number(exponential(value), 3) for value in (outcome.final.low, outcome.final.high))
    said = [f"95 %: {low} to {high}"] if math.isfinite(outcome.final.low) else []
    if outcome.diverged:
        said.append(f"{outcome.diverged} of {outcome.n + outcome.diverged} seeds diverged")
    return ", ".join(said)


def _facts_of_run(members: Members, found: Sequence[Outcome]) -> tuple[Fact, ...]:
    member = members.runs[0]
    first, last = _level(member, 0), _level(member, -1)
    name = title_of(found[0].metric)
    facts = [Fact(name, number(last, 4), f"from {number(first, 4)}")]
    facts.append(Fact("Updates", f"{len(member.steps):,}", f"in {duration(sum(r['seconds'] for r in member.steps))}"))
    rate = member.run.summary.get("throughput", {}).get("tokens_per_second")
    if rate is not None:
        facts.append(Fact("Candidate tokens", f"{rate:,.0f} / s"))
    return tuple(facts)


def _level(member: Member, place: int) -> float | None:
    record = member.evaluations[place]
    value = record.get("test_perplexity")
    return record.get("validation_perplexity") if value is None else value


def _in_words(members: Members, found: Sequence[Outcome], chosen: dict) -> str:
    """What happened in runs of one method, which nothing can be compared with."""
    method, outcome = members.methods[0], found[0]
    first, last = _level(members.runs[0], 0), perplexity(outcome.final)
    title = title_of(outcome.metric).lower()
    seeds = "" if len(members.seeds) == 1 else f", mean of {len(members.seeds)} seeds"
    fell = first is not None and exponential(outcome.final.mean) < first
    updates = len(members.runs[0].steps)
    way = "down" if fell else "up"
    sentences = [f"{method} brought the {title} {way} from {number(first, 4)} to {last} in {updates:,} updates{seeds}."]
    if not outcome.n:
        sentences = [f"{method} ended without a finite loss after {updates:,} updates."]
    shares = chosen.get(method)
    if shares is not None and len(shares.names) > 1:
        most = int(max(range(len(shares.names)), key=lambda i: shares.ratio[i] if shares.candidates[i] else -1))
        sentences.append(
            f"It chose {shares.names[most]} most readily, {shares.ratio[most]:.2f} times as often as chance would."
        )
    sentences.append(
        "Whether selection pays here is not known: that takes the same run with random_k and regular, as greats "
        "compare makes them."
    )
    return " ".join(sentences)
