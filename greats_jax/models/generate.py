"""Generation with a key/value cache: prompts in batches of few shapes, each shape one compiled program."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

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

Ended = Callable[[list[int]], bool]
"""Whether the tokens that a row has produced so far are enough."""

_CHUNK = 16  # tokens between two questions to the host whether a row has ended


class _Decoding(NamedTuple):
    """What one step hands to the next."""

    cache: Any  # keys and values, each [L, B, S, K, H]; slot s of a row holds its token at position s
    token: jax.Array  # i32[B], produced and not yet fed back
    position: jax.Array  # i32[B], where that token goes
    done: jax.Array  # bool[B]
    key: jax.Array


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]] | np.ndarray,
    attention_mask: np.ndarray | None = None,
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    eos_token_ids: tuple[int, ...] | None = None,
    batch: int | None = None,
    ended: Ended | None = None,
    check: Check = never,
) -> list[list[int]]:
    """Continues prompts.

    Works with adapters, with a quantised base, on a mesh (rows are spread over its devices) and in several processes,
    each of which asks the same and gets all results.

    Args:
      model: any decoder, with or without adapters.
      prompts: token ids per row, of any lengths; or an array [B, T] with `attention_mask`.
      attention_mask: bool or int [B, T], 1 for real tokens; padding may be left or right. Only for an array.
      max_new_tokens: most tokens to add to each row.
      temperature: 0 takes the likeliest token; otherwise tokens are drawn from softmax(logits / temperature).
      seed: of the draws.
      eos_token_ids: tokens that end a row; None for those of the model.
      batch: rows continued at once, neighbours in length; None for all in one batch.
      ended: asked every 16 tokens for each row that goes on, with all that it has produced: for ends that only the text
        shows. What was produced past such an end is returned too.
      check: called before each batch and whenever `ended` is asked, with the number of prompts done; raises what shall
        end the work.

    Returns:
      The new tokens of each row; the token that ended the row is left out.

    Raises:
      ModelError: if a row is empty or too long for the model, an id is outside the vocabulary, or an option has no
        meaning.

    Cost: one forward pass over the prompts, then one pass over one token per row and step, which stops when all rows of
    a batch ended. Lengths are padded to a power of two or three quarters of one, and the last batch to full size, so
    that few programs are compiled: two for each length that occurs.
    """
    if isinstance(prompts, Sequence) and not prompts and batch is not None:
        return []
    rows = _rows(prompts, attention_mask)
    _check_request(model, rows, max_new_tokens, temperature)
    stops = model.config.eos_token_ids if eos_token_ids is None else eos_token_ids
    options = _Options(max_new_tokens, temperature, tuple(stops or (-1,)), len(rows) if batch is None else batch)
    answers: list[list[int]] = [[] for _ in rows]
    for number, members in enumerate(batches_by_length([len(row) for row in rows], options.batch)):
        done = number * options.batch
        check(done)
        key = jax.random.fold_in(jax.random.key(seed), number)
        chosen = [rows[i] for i in members]
        for row, answer in zip(
            members, _continue(model, chosen, options, key, ended, partial(check, done)), strict=True
        ):
            answers[row] = answer
    return answers


class _Options(NamedTuple):
    """Of one call."""

    limit: int  # tokens
    temperature: float
    stops: tuple[int, ...]
    batch: int


def _continue(
    model: Decoder,
    rows: list[list[int]],
    options: _Options,
    key: jax.Array,
    ended: Ended | None,
    check: Callable[[], None],
) -> list[list[int]]:
    """One batch, the longest row first."""
    parts = partition(model)
    size = rows_of_batch(options.batch, model.mesh)
    new_slots = padded_length(options.limit)
    length = min(padded_length(len(rows[0])), model.config.max_length)
    # Rows beyond the prompts are one token long and have ended before they begin.
    ids, lengths = padded(rows, size, length), np.ones(size, np.int32)
    lengths[: len(rows)] = [len(row) for row in rows]
    done = np.arange(size) >= len(rows)
    chosen = np.float32(options.temperature), np.asarray(options.stops, np.int32)
    draws = options.temperature > 0
    ids, lengths, finished = put_rows(model.mesh, (ids, lengths, done))
    decoding = _begin(*parts, ids, lengths, finished, *chosen, key, slots=length + new_slots, draws=draws)
    answers: list[list[int]] = [[] for _ in rows]
    chunk = new_slots if ended is None else min(_CHUNK, new_slots)
    for first in range(0, options.limit, chunk):
        if first:
            check()
        steps = np.int32(min(chunk, options.limit - first))
        finished = put_rows(model.mesh, done)
        decoding, tokens, counts, now_done = _extend(
            *parts, decoding, finished, steps, *chosen, chunk=chunk, draws=draws
        )
        tokens, counts, done = np.asarray(tokens), np.asarray(counts), np.array(now_done)
        for i, answer in enumerate(answers):
            answer += tokens[i, : counts[i]].tolist()
            done[i] |= ended is not None and not done[i] and ended(answer)
        if done.all():
            break
    return answers


@partial(jax.jit, static_argnames=("graphdef", "slots", "draws"))
def _begin(
    graphdef, params, frozen, ids, lengths, done, temperature, stops, key, *, slots: int, draws: bool
) -> _Decoding:
    """Fills a cache of `slots` positions from right-padded prompts, and chooses the first token of each row."""
    model = combine(graphdef, params, frozen)
    hidden, cache = _prefill(model, ids, slots)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    token, key = _choose(model.head(last)[:, 0], temperature, key, draws)
    return _Decoding(cache, token, lengths, done | jnp.isin(token, stops), key)


@partial(jax.jit, static_argnames=("graphdef", "chunk", "draws"), donate_argnames="decoding")
def _extend(graphdef, params, frozen, decoding, done, limit, temperature, stops, *, chunk: int, draws: bool):
    """Adds tokens until every row ended or `limit` of them are there.

    Args:
      graphdef: as of `partition`, like `params` and `frozen`.
      params: trainable arrays.
      frozen: the other arrays.
      decoding: what was done so far.
      done: bool[B], rows that the host has seen end.
      limit: i32[], at most `chunk`.
      temperature: f32[].
      stops: i32[S], tokens that end a row.
      chunk: room for tokens.
      draws: whether tokens are drawn.

    Returns:
      What was done now, i32[B, chunk] tokens, i32[B], how many of them each row has, and bool[B], which have ended.
    """
    model = combine(graphdef, params, frozen)
    batch = decoding.token.shape[0]

    def running(carry):
        step, decoding, _, _ = carry
        return (step < limit) & ~jnp.all(decoding.done)

    def advance(carry):
        step, decoding, tokens, counts = carry
        tokens = tokens.at[:, step].set(decoding.token)
        counts = counts + ~decoding.done
        hidden, cache = _step(model, decoding.cache, decoding.token, decoding.position)
        token, key = _choose(model.head(hidden)[:, 0], temperature, decoding.key, draws)
        done = decoding.done | jnp.isin(token, stops)
        return step + 1, _Decoding(cache, token, decoding.position + 1, done, key), tokens, counts

    decoding = decoding._replace(done=decoding.done | done)
    empty = jnp.zeros((batch, chunk), jnp.int32), jnp.zeros(batch, jnp.int32)
    _, decoding, tokens, counts = jax.lax.while_loop(running, advance, (jnp.int32(0), decoding, *empty))
    return decoding, *for_the_host(model.mesh, (tokens, counts, decoding.done))


def _choose(logits: jax.Array, temperature: jax.Array, key: jax.Array, draws: bool) -> tuple[jax.Array, jax.Array]:
    """The next token of each row, i32[B], and the next key."""
    key, draw = jax.random.split(key)
    token = jax.random.categorical(draw, logits / temperature) if draws else jnp.argmax(logits, axis=-1)
    return token.astype(jnp.int32), key


def _prefill(model: Decoder, ids: jax.Array, slots: int) -> tuple[jax.Array, Any]:
    """Runs right-padded prompts [B, T]; returns [B, T, d] and a cache of `slots` positions.

    The slots of padding hold values of no meaning. No query sees them: a query at position p looks at slots up to p,
    and the row's own tokens overwrite the padding from the left.
    """
    positions = jnp.arange(ids.shape[1], dtype=jnp.int32)
    spare = slots - ids.shape[1]

    def attend(q, k, v, window):
        q, k = model.place(q, positions), model.place(k, positions)
        mixed = _cached_attention(q, k, v, jnp.broadcast_to(positions, ids.shape), window)
        return mixed, tuple(jnp.pad(x, ((0, 0), (0, spare), (0, 0), (0, 0))) for x in (k, v))

    return model.run(model.embedded(ids, positions), attend, _windows(model))


def _step(model: Decoder, cache: Any, token: jax.Array, position: jax.Array) -> tuple[jax.Array, Any]:
    """Runs one token per row, i32[B], at its own position, i32[B]; returns [B, 1, d] and the new cache."""
    positions = position[:, None]
    row = jnp.arange(token.shape[0])

    def attend(q, k, v, extra):
        window, (keys, values) = extra
        q, k = model.place(q, positions), model.place(k, positions)
        keys = keys.at[row, position].set(k[:, 0], mode="drop")
        values = values.at[row, position].set(v[:, 0], mode="drop")
        return _cached_attention(q, keys, values, positions, window), (keys, values)

    return model.run(model.embedded(token[:, None], positions), attend, (_windows(model), cache))


def _cached_attention(q, keys, values, positions, window):
    """Attention of queries [B, T, N, H] at `positions`, i32[B, T], to slots [B, S, K, H] up to theirs in the window."""
    distance = positions[:, :, None] - jnp.arange(keys.shape[1])[None, None]
    mask = (distance >= 0) & ((window == 0) | (distance < window))
    return jax.nn.dot_product_attention(q, keys, values, mask=mask[:, None])


def _windows(model: Decoder) -> jax.Array:
    return jnp.asarray(model.config.windows or (0,) * model.config.layers, jnp.int32)


def _check_request(model: Decoder, rows: list[list[int]], max_new_tokens: int, temperature: float) -> None:
    config = model.config
    longest = max(map(len, rows))
    if max_new_tokens < 1:
        raise ModelError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
    if not (np.isfinite(temperature) and temperature >= 0):
        raise ModelError(f"temperature is {temperature}: it must be 0 (likeliest token) or a positive number")
    if longest + max_new_tokens > config.max_length:
        raise ModelError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones pass its {config.max_length}: shorten one"
        )
    bad = next((token for row in rows for token in row if not 0 <= token < config.vocab_size), None)
    if bad is not None:
        raise ModelError(
            f"prompt token {bad} is not in the vocabulary of {config.vocab_size}: use the model's tokenizer"
        )


def _rows(prompts: Sequence[Sequence[int]] | np.ndarray, attention_mask: np.ndarray | None) -> list[list[int]]:
    if attention_mask is not None:
        ids, mask = np.asarray(prompts), np.asarray(attention_mask).astype(bool)
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise ModelError(
                f"prompts {list(ids.shape)} and attention_mask {list(mask.shape)} must have one shape [B, T]"
            )
        # Real tokens only, in order: the side of the padding does not matter from here on.
        rows = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
    else:
        rows = [np.asarray(row).astype(int).tolist() for row in prompts]
    if not rows or not all(rows):
        raise ModelError("a prompt has no tokens: give each row at least one, such as the tokenizer's bos token")
    return rows
