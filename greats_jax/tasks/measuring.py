"""Scores of a model on a benchmark: its prompts within what the model can read, its answers, and what they are worth.

A prompt is rendered as the validation examples of the same task are, so what is measured is what the selection serves.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from greats_jax.data import Renderer, Template
from greats_jax.models import Decoder
from greats_jax.models.bucketing import Check, never
from greats_jax.models.generate import generate
from greats_jax.models.likelihood import continuation_log_likelihoods
from greats_jax.tasks.metrics import METRICS, check_metric
from greats_jax.tasks.prompting import Prompt, Prompter
from greats_jax.tasks.questions import Benchmark, Likelihood, Question, cut_at

OVER_QUESTIONS = "_over_questions"
"""Ends the name of a mean over all questions, where that of the plain name is a mean over groups."""


class Answered(NamedTuple):
    """What became of one question.

    Attributes:
        id: The question's name.
        group: Its group.
        prediction: The choice taken, or what the model wrote up to the first stop.
        scores: What the metric makes of it.
        likelihoods: Log-likelihood of each choice, nats; empty where the model wrote its answer.
    """

    id: str
    group: str
    prediction: str
    scores: dict[str, float]
    likelihoods: tuple[float, ...] = ()


class Measured(NamedTuple):
    """Scores of a model on a benchmark.

    Attributes:
        scores: Each score of the metric, as the mean over groups of the mean within each, and with several groups also
            as the mean over all questions (`accuracy` and `accuracy_over_questions`).
        groups: The means within each group.
        answers: One for each question, in order.
        questions: Number of questions.
        dropped_shots: Worked examples left out, because a prompt was too long with them.
        shortened: Questions that were too long even without any, and lost their beginning.
    """

    scores: dict[str, float]
    groups: dict[str, dict[str, float]]
    answers: tuple[Answered, ...]
    questions: int
    dropped_shots: int
    shortened: int


class MeasuringStopped(Exception):
    """The work was left because it was asked to stop."""


def measure(
    benchmark: Benchmark,
    model: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Template = "auto",
    max_length: int = sys.maxsize,
    batch: int = 8,
    should_stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Measured:
    """Asks a model every question of a benchmark and judges its answers.

    Args:
        benchmark: The questions.
        model: The model, wherever its arrays live; of several processes, each calls this and gets the same.
        tokenizer: Its tokenizer.
        template: How a user's turn is written, as in `DataConfig`.
        max_length: Longest prompt in tokens, with the choice where one is judged. Neither these nor the prompts of
            written answers with their new tokens may pass the positions of the model.
        batch: Questions answered at once.
        should_stop: Asked between batches.
        progress: Told between batches how many questions of how many are done.

    Returns:
        The scores and every answer.

    Raises:
        TaskError: The metric is unknown or lacks its package, or a question cannot be rendered or leaves no room.
        MeasuringStopped: `should_stop` said yes.

    Cost: for choices of one token one forward pass for each question, otherwise one for each choice; for written
    answers that and a pass over one token for each token of the longest answer in a batch.
    """
    check_metric(benchmark.metric)
    prompter = Prompter(model, tokenizer, template, max_length, benchmark.max_new_tokens)
    prompts = prompter.prompts(benchmark.questions)

    def check(before: int, done: int) -> None:
        if should_stop():
            raise MeasuringStopped
        progress(before + done, len(prompts))

    judged = [i for i, prompt in enumerate(prompts) if prompt.choices]
    written = [i for i, prompt in enumerate(prompts) if not prompt.choices]
    weights = _weighed([prompts[i] for i in judged], model, batch, partial(check, 0))
    texts = written_answers(
        model, prompter.renderer, [prompts[i].tokens for i in written], benchmark.stops, benchmark.max_new_tokens,
        batch, partial(check, len(judged)),
    )  # fmt: skip
    likelihoods: list[tuple[float, ...]] = [()] * len(prompts)
    predictions = [""] * len(prompts)
    for i, found in zip(judged, weights, strict=True):
        likelihoods[i] = found
        predictions[i] = _taken(benchmark.questions[i], prompts[i], found, benchmark.likelihood)
    for i, text in zip(written, texts, strict=True):
        predictions[i] = text
    progress(len(prompts), len(prompts))
    metric = METRICS[benchmark.metric]
    answers = tuple(
        Answered(question.id, question.group, prediction, metric(prediction, question.answers), found)
        for question, prediction, found in zip(benchmark.questions, predictions, likelihoods, strict=True)
    )
    scores, groups = averages(answers)
    dropped, shortened = sum(prompt.dropped for prompt in prompts), sum(prompt.shortened for prompt in prompts)
    return Measured(scores, groups, answers, len(answers), dropped, shortened)


def averages(answers: Sequence[Answered]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Scores of a benchmark and of each of its groups, as `Measured` has them."""
    if not answers:
        return {}, {}
    by_group: dict[str, list[Mapping[str, float]]] = {}
    for answer in answers:
        by_group.setdefault(answer.group, []).append(answer.scores)
    names = list(answers[0].scores)
    groups = {group: {name: fmean(one[name] for one in every) for name in names} for group, every in by_group.items()}
    scores = {name: fmean(group[name] for group in groups.values()) for name in names}
    if len(groups) > 1:
        scores |= {name + OVER_QUESTIONS: fmean(one.scores[name] for one in answers) for name in names}
    return scores, groups


def written_answers(
    model: Decoder,
    renderer: Renderer,
    prompts: Sequence[Sequence[int]],
    stops: Sequence[str],
    max_new_tokens: int,
    batch: int,
    check: Check = never,
) -> list[str]:
    """The likeliest continuation of each prompt as text, up to a stop, an end token or the greatest length.

    Args:
        model: The model.
        renderer: Renders its conversations, and so knows what ends the assistant's turn.
        prompts: Token ids.
        stops: Texts at the first of which an answer is cut. They may be or hold special tokens, none of which is left
            in the answers.
        max_new_tokens: Greatest number of tokens.
        batch: Prompts continued at once.
        check: Called between batches and every few tokens; raises what shall end the work.
    """
    tokenizer = renderer.tokenizer
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]

    def whole(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=False))

    def ended(tokens: Sequence[int]) -> bool:
        found = whole(tokens)
        return any(stop in found for stop in stops)

    def answer(tokens: Sequence[int]) -> str:
        # A stop may be a special token, such as the one that opens the user's turn: looked for before those are gone.
        found = whole(tokens)
        before = cut_at(found, stops)
        if before == found:
            return str(tokenizer.decode(list(tokens), skip_special_tokens=True))
        for token in special:
            before = before.replace(token, "")
        return before

    answers = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        eos_token_ids=tuple(sorted({*model.config.eos_token_ids, *renderer.end_tokens()})),
        batch=batch,
        ended=ended if stops else None,
        check=check,
    ) if prompts else []  # fmt: skip
    return [answer(tokens) for tokens in answers]


def _weighed(prompts: Sequence[Prompt], model: Decoder, batch: int, check: Check) -> list[tuple[float, ...]]:
    """Log-likelihood of every choice of each prompt."""
    pairs = [pair for prompt in prompts for pair in prompt.choices]
    sums, _ = continuation_log_likelihoods(
        model,
        [before for before, _ in pairs],
        [choice for _, choice in pairs],
        batch=batch,
        check=lambda done: check(done * len(prompts) // len(pairs)),
    )
    found = iter(sums.tolist())
    return [tuple(next(found) for _ in prompt.choices) for prompt in prompts]


def _taken(question: Question, prompt: Prompt, likelihoods: Sequence[float], kind: Likelihood) -> str:
    """The likeliest choice; none where a likelihood is not finite. Of equal ones the first."""
    if not all(map(math.isfinite, likelihoods)):
        return ""
    match kind:
        case "sum":
            sizes = [1] * len(likelihoods)
        case "per_token":
            sizes = [len(tokens) for _, tokens in prompt.choices]
        case "per_character":
            sizes = [max(1, len(choice.removeprefix(" "))) for choice in question.choices]
    return question.choices[int(np.argmax(np.divide(likelihoods, sizes)))]
