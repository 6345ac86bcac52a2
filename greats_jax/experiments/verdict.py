"""What a comparison found, in words."""

import math
from collections.abc import Sequence

from greats_jax.experiments.comparison_config import CONTROLS
from greats_jax.experiments.numbers import number
from greats_jax.experiments.outcomes import RANDOM, REGULAR, TARGET_ONLY, Outcome
from greats_jax.experiments.ranking import Best, best_of
from greats_jax.experiments.statistics import Difference
from greats_jax.experiments.wording import exponential, probability

_SURE = 0.05
_BASES = (REGULAR, RANDOM, TARGET_ONLY)  # controls that choose by no score


def verdict(outcomes: Sequence[Outcome], asked: Sequence[str] = ()) -> str:
    """Whether selection pays: one paragraph for every setting, of the method that did best in it.

    Args:
        outcomes: As `outcomes.outcomes` gives them.
        asked: The methods that the comparison is about; of none, those that are no control.
    """
    settings = list(dict.fromkeys(outcome.setting for outcome in outcomes))
    parts = []
    for setting in settings:
        of_setting = [outcome for outcome in outcomes if outcome.setting == setting]
        text = _of_setting(of_setting, asked)
        parts.append(f"With {setting}: {text}" if setting else text)
    if len(settings) > 1:
        parts[-1] += (
            f" Each of these {len(settings)} settings is judged by itself, at the level of {100 * _SURE:.0f} %: of "
            f"twenty settings without any difference about one would seem to have one."
        )
    return "\n\n".join(parts) if parts else "No run has finished yet."


def _of_setting(every: Sequence[Outcome], asked: Sequence[str]) -> str:
    by = {outcome.method: outcome for outcome in every}
    own = [o for o in every if (o.method in asked if asked else o.method not in CONTROLS)]
    own = own or [o for o in every if o.method not in _BASES]
    if not own:
        return "No selection method has finished here, so there is nothing to compare."
    lost = [_diverged(outcome) for outcome in every if outcome.diverged]
    found = best_of(own)
    if found is None:
        return " ".join([*lost, f"So whether {' or '.join(o.method for o in own)} pays cannot be told."])
    best = found.outcome
    random, regular, target_only = (by.get(name) for name in (RANDOM, REGULAR, TARGET_ONLY))
    sentences = []
    if len(own) > 1:
        sentences.append(f"Of {', '.join(o.method for o in own)}, {best.method} did best{_over(found, own)}.")
    sentences += lost
    sentences.append(_headline(best))
    beside = [best, *(o for o in (random, regular, target_only) if o is not None and o is not best)]
    uneven = len({o.n for o in beside}) > 1
    levels = [f"{o.method} {_perplexity(o)}" + f" ({_seeds(o.n)})" * uneven for o in beside]
    sentences.append(f"Mean {_split(best)} perplexity after equally many updates: {', '.join(levels)}.")
    for name, at_end, in_time in (
        (RANDOM, best.against_random, best.against_random_in_time),
        (REGULAR, best.against_regular, best.against_regular_in_time),
    ):
        if at_end is not None:
            sentences.append(
                f"Against {name}: {_compared(at_end)} at equal updates; {_compared(in_time)} in equal time."
            )
    if best.target in by and best.method != best.target:
        sentences.append(_to_target(best))
    lower = None if target_only is None else best_of([best, target_only])
    if lower is not None and lower.outcome is not best:
        sentences.append(
            f"Training on the validation examples alone (target_only) ended lower still, at "
            f"{_perplexity(lower.outcome)}: here they teach more than what was selected by them."
        )
    if best.n < 5:
        sentences.append(f"{_seeds(best.n).capitalize()} can only show very large effects; five or more are advised.")
    return " ".join(sentences)


def _over(found: Best, own: Sequence[Outcome]) -> str:
    """Which seeds methods were ranked over, where these are not all seeds of each."""
    if not found.seeds:
        return ", each over seeds of its own"
    count = len(found.seeds)
    if all(outcome.n <= count for outcome in own if not outcome.diverged):
        return ""
    return f" over the {'seed' if count == 1 else f'{count} seeds'} they share"


def _headline(best: Outcome) -> str:
    """Does it pay, in quality and in time."""
    if best.method in _BASES:
        return f"{best.method} is what methods are compared with: whether selection pays takes one that selects."
    if best.against_random is None:
        return f"Whether {best.method} pays cannot be told: random_k is not in the comparison."
    quality, in_time = _sign(best.against_random), _sign(best.against_random_in_time)
    pairs = best.against_random.n
    if not pairs:
        return (
            f"Whether {best.method} pays cannot be told: no seed of random_k that ended with a finite loss is its own."
        )
    if math.isnan(best.against_random.p):
        return f"Whether {best.method} pays cannot be told from {_seeds(pairs)}."
    if quality < 0:
        if in_time < 0:
            return f"{best.method} pays: better than choosing at random, also in equal time."
        if in_time > 0:
            return f"{best.method} pays per update but not per second: what choosing costs is more than what it gains."
        return f"{best.method} pays per update: better than choosing at random. In equal time that is not shown."
    if quality > 0:
        return f"{best.method} does not pay: it is worse than choosing at random."
    return f"{best.method} does not show that it pays: {_seeds(pairs)} cannot tell it from choosing at random."


def _sign(difference: Difference | None) -> int:
    """-1 for surely lower, 1 for surely higher, 0 for neither."""
    if difference is None or not difference.p < _SURE:
        return 0
    return -1 if difference.mean < 0 else 1


def _compared(difference: Difference | None) -> str:
    """A difference of losses as that of perplexities, and how sure."""
    if difference is None or not difference.n:
        return "not measured"
    change = 100 * (exponential(difference.mean) - 1)
    words = f"{abs(change):.1f} % {'lower' if change < 0 else 'higher'}" if abs(change) >= 0.05 else "the same"
    if math.isnan(difference.p):
        return f"{words} (one pair)"
    low, high = sorted(100 * (exponential(x) - 1) for x in (difference.low, difference.high))
    return f"{words} (95 % between {low:+.1f} and {high:+.1f} %, {probability(difference.p)})"


def _to_target(best: Outcome) -> str:
    if not best.aimed:
        return f"{best.target} ended no lower than it began, so there is nothing to reach."
    runs = f"{best.aimed} runs{' with something to reach' * (best.aimed < best.n)}"
    if best.steps_share is None or best.seconds_share is None:
        return f"It came to the last perplexity of {best.target} in none of {runs}."
    return (
        f"It came to the last perplexity of {best.target} in {best.reached} of {runs}, after "
        f"{100 * best.steps_share.mean:.0f} % of its updates and {100 * best.seconds_share.mean:.0f} % of its time."
    )


def _diverged(outcome: Outcome) -> str:
    return f"{outcome.method}: {outcome.diverged} of {outcome.n + outcome.diverged} ended without a finite loss."


def _perplexity(outcome: Outcome) -> str:
    return number(exponential(outcome.final.mean), 4)


def _split(outcome: Outcome) -> str:
    return outcome.metric.removesuffix("_loss").replace("_", " ")


def _seeds(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"
