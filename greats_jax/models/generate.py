"""Generation with a key/value cache, one compiled program per pair of padded lengths."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from greats_jax.errors import ModelError
from greats_jax.models.decoder import Decoder
from greats_jax.models.partition import combine, partition

_SMALLEST_BUCKET = 16  # tokens


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
) -> list[list[int]]:
    """Continues prompts, all rows in one batch.

    Args:
      model: any decoder, with or without adapters.
      prompts: token ids per row, of any lengths; or an array [B, T] with `attention_mask`.
      attention_mask: bool or int [B, T], 1 for real tokens; padding may be left or right. Only for an array.
      max_new_tokens: most tokens to add to each row.
      temperature: 0 takes the likeliest token; otherwise tokens are drawn from softmax(logits / temperature).
      seed: of the draws.
      eos_token_ids: tokens that end a row; None for those of the model.

    Returns:
      The new tokens of each row; the token that ended the row is left out.

    Raises:
      ModelError: if a row is empty or too long for the model, an id is outside the vocabulary, or an option has no
        meaning.

    Cost: one forward pass over the prompts, then one pass over one token per row and step, which stops when all rows
      ended. Prompts and
    lengths are padded to powers of two, so that few programs are compiled.
    """
    rows = _rows(prompts, attention_mask)
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
    prompt_slots = min(_bucket(longest), config.max_length)
    ids = np.zeros((len(rows), prompt_slots), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = np.array([len(row) for row in rows], np.int32)
    graphdef, params, frozen = partition(model)
    stops = config.eos_token_ids if eos_token_ids is None else eos_token_ids
    tokens, counts = _decode(
        graphdef,
        params,
        frozen,
        ids,
        lengths,
        np.int32(max_new_tokens),
        np.float32(temperature),
        np.asarray(stops or (-1,), np.int32),
        jax.random.key(seed),
        new_slots=_bucket(max_new_tokens),
        draws=temperature > 0,
    )
    tokens, counts = np.asarray(tokens), np.asarray(counts)
    return [tokens[i, : counts[i]].tolist() for i in range(len(rows))]


@partial(jax.jit, static_argnames=("graphdef", "new_slots", "draws"))
def _decode(graphdef, params, frozen, ids, lengths, limit, temperature, stops, key, *, new_slots: int, draws: bool):
    """Fills a cache from right-padded prompts, then adds tokens until every row ended or `limit` is reached.

    Returns:
      i32[B, new_slots] tokens and i32[B], how many of them each row has.
    """
    model = combine(graphdef, params, frozen)
    batch, slots = ids.shape[0], ids.shape[1] + new_slots

    def choose(logits, key):
        key, draw = jax.random.split(key)
        token = jax.random.categorical(draw, logits / temperature) if draws else jnp.argmax(logits, axis=-1)
        return token.astype(jnp.int32), key

    hidden, cache = _prefill(model, ids, slots)
    token, key = choose(model.head(hidden[jnp.arange(batch), lengths - 1][:, None])[:, 0], key)

    def running(carry):
        step, decoding, _, _ = carry
        return (step < limit) & ~jnp.all(decoding.done)

    def advance(carry):
        step, decoding, tokens, counts = carry
        tokens = tokens.at[:, step].set(decoding.token)
        counts = counts + ~decoding.done
        hidden, cache = _step(model, decoding.cache, decoding.token, decoding.position)
        token, key = choose(model.head(hidden)[:, 0], decoding.key)
        done = decoding.done | jnp.isin(token, stops)
        return step + 1, _Decoding(cache, token, decoding.position + 1, done, key), tokens, counts

    start = _Decoding(cache, token, lengths, jnp.isin(token, stops), key)
    empty = jnp.zeros((batch, new_slots), jnp.int32), jnp.zeros(batch, jnp.int32)
    _, _, tokens, counts = jax.lax.while_loop(running, advance, (jnp.int32(0), start, *empty))
    return tokens, counts


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


def _bucket(length: int) -> int:
    return max(_SMALLEST_BUCKET, 1 << (length - 1).bit_length())


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
