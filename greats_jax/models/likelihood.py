"""How likely a model finds given continuations of prompts."""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from greats_jax.errors import ModelError
from greats_jax.models.bucketing import (
    Check,
    batches_by_length,
    for_the_host,
    never,
    padded,
    padded_length,
    put_rows,
    rows_of_batch,
)
from greats_jax.models.decoder import Decoder
from greats_jax.models.partition import combine, partition

_SLICE = 64  # positions whose logits are in memory at once
_AHEAD = 2  # batches dispatched and not yet read


class _Row(NamedTuple):
    """What the model runs over once: continuations that differ in their last token only share a row."""

    tokens: tuple[int, ...]  # the prompt, and the continuation without its last token
    count: int  # tokens of the continuation
    requests: list[int]  # whose continuations these are


def continuation_log_likelihoods(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    batch: int = 8,
    check: Check = never,
) -> tuple[np.ndarray, np.ndarray]:
    """Log-likelihood of each continuation after its prompt.

    Works with adapters, with a quantised base, on a mesh (rows are spread over its devices) and in several processes,
    each of which asks the same and gets all results.

    Args:
      model: any decoder.
      prompts: token ids, at least one per prompt.
      continuations: token ids, at least one per continuation.
      batch: rows the model runs over at once.
      check: called before each batch with the number of continuations done; raises what shall end the work.

    Returns:
      f64[n], the sum over the continuation's tokens of their log-probabilities in nats; and bool[n], whether each of
      them is the likeliest token where it stands.

    Raises:
      ModelError: if a prompt or continuation is empty, too long together for the model, or an id is outside the
        vocabulary.

    Cost: one forward pass over each prompt with its continuation. Choices of one token after a common prompt (the
    letters of a question) cost one pass together. Logits exist only where a continuation is predicted, 64 positions at
    a time. Lengths are padded to a power of two or three quarters of one; each is one compilation.
    """
    rows = _distinct(model, prompts, continuations)
    sums, greedy = np.zeros(len(prompts)), np.zeros(len(prompts), bool)
    if not rows:
        return sums, greedy
    pending: deque = deque()

    def read() -> None:
        members, log_likelihoods, likeliest = pending.popleft()
        log_likelihoods, likeliest = np.asarray(log_likelihoods), np.asarray(likeliest)
        for i, row in enumerate(members):
            for k, request in enumerate(row.requests):
                sums[request] = log_likelihoods[i, : row.count, k].sum(dtype=np.float64)
                greedy[request] = likeliest[i, : row.count, k].all()

    done = 0
    for members, arrays in _batches(model, rows, continuations, batch):
        check(done)
        done += sum(len(row.requests) for row in members)
        pending.append((members, *_scores(*partition(model), *put_rows(model.mesh, arrays))))
        if len(pending) > _AHEAD:
            read()
    while pending:
        read()
    return sums, greedy


def _distinct(model: Decoder, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[_Row]:
    rows: dict[tuple[tuple[int, ...], int], _Row] = {}
    config = model.config
    for i, (prompt, continuation) in enumerate(zip(prompts, continuations, strict=True)):
        if not len(prompt) or not len(continuation):
            what = "continuation" if len(prompt) else "prompt"
            raise ModelError(f"{what} {i} has no tokens: a likelihood needs at least one on either side")
        tokens = (*map(int, prompt), *map(int, continuation))
        if len(tokens) - 1 > config.max_length:
            raise ModelError(
                f"prompt {i} has {len(prompt)} tokens and its continuation {len(continuation)}, which pass the "
                f"model's {config.max_length}: shorten the prompt"
            )
        bad = next((token for token in tokens if not 0 <= token < config.vocab_size), None)
        if bad is not None:
            raise ModelError(f"token {bad} is not in the vocabulary of {config.vocab_size}: use the model's tokenizer")
        key = tokens[:-1], len(continuation)
        rows.setdefault(key, _Row(*key, [])).requests.append(i)
    return list(rows.values())


def _batches(
    model: Decoder, rows: list[_Row], continuations: Sequence[Sequence[int]], batch: int
) -> Iterator[tuple[list[_Row], tuple[np.ndarray, ...]]]:
    """The rows in padded batches: ids i32[B, T], first label i32[B], labels i32[B, C, K] of K requests to a row."""
    size = rows_of_batch(min(batch, len(rows)), model.mesh)
    most = padded_length(max(row.count for row in rows)) if any(row.count > 1 for row in rows) else 1
    shared = 1 << (max(len(row.requests) for row in rows) - 1).bit_length()
    for numbers in batches_by_length([len(row.tokens) for row in rows], batch):
        members = [rows[i] for i in numbers]
        length = padded_length(len(members[0].tokens))
        labels = np.zeros((size, min(most, length), shared), np.int32)
        first = np.zeros(size, np.int32)
        for i, row in enumerate(members):
            first[i] = len(row.tokens) - row.count
            for k, request in enumerate(row.requests):
                labels[i, : row.count, k] = continuations[request]
        yield members, (padded([row.tokens for row in members], size, length), first, labels)


@partial(jax.jit, static_argnames=("graphdef",))
def _scores(graphdef, params, frozen, ids, first, labels):
    """Log-probabilities f32[B, C, K] of labels, the first of which follows position `first`, and which are likeliest.

    There is no mask: padding is on the right, where no token of a row looks.
    """
    model = combine(graphdef, params, frozen)
    hidden = model.hidden(ids)
    count = labels.shape[1]
    slices = -(-count // _SLICE)
    width = -(-count // slices)
    # Positions past the end of a row are clipped: what is found there is not read.
    positions = jnp.minimum(first[:, None] + jnp.arange(slices * width), ids.shape[1] - 1)
    hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
    labels = jnp.pad(labels, ((0, 0), (0, slices * width - count), (0, 0)))

    def of_slice(at: jax.Array):
        part = jax.lax.dynamic_slice_in_dim(labels, at, width, 1)
        logits = model.head(jax.lax.dynamic_slice_in_dim(hidden, at, width, 1))
        found = jnp.take_along_axis(logits, part, axis=-1)
        return found - jax.nn.logsumexp(logits, axis=-1, keepdims=True), part == jnp.argmax(logits, -1)[..., None]

    def joined(x):  # [S, B, W, K] -> [B, C, K]
        return jnp.moveaxis(x, 0, 1).reshape(len(ids), slices * width, -1)[:, :count]

    every = jax.lax.map(of_slice, jnp.arange(slices) * width)
    return for_the_host(model.mesh, jax.tree.map(joined, every))
