"""Sentence embeddings that are computed once: a cache on disk, keyed by the content of encoder and text."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import save

from greats_jax.errors import ModelError, RunError
from greats_jax.models.checkpoint import open_safetensors

_KEY_BYTES = 32  # of SHA-256
# Texts to a file: a killed run loses at most the work on this many.
_TEXTS_PER_FILE = 2048


class TextEncoder(Protocol):
    """What the cache asks of an encoder; `greats_jax.models.SentenceEncoder` is one."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides the embeddings."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """f32[n, e] for n texts."""
        ...


def default_cache() -> Path:
    """Where embeddings are kept: greats-jax/embeddings in $XDG_CACHE_HOME, else in ~/.cache."""
    # The standard says to ignore a relative path.
    root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (root if root.is_absolute() else Path("~/.cache").expanduser()) / "greats-jax" / "embeddings"


def embed(encoder: TextEncoder, texts: Sequence[str], cache: Path | None = None) -> np.ndarray:
    """Embeds texts, computing only what the cache lacks.

    A cache is a folder of safetensors files that are written whole and never changed, so several runs may share it:
    at worst two of them compute the same text. A damaged file is passed over and its texts are computed again.

    Args:
      encoder: see `TextEncoder`.
      texts: n strings; each different one is encoded once.
      cache: the folder, made if need be (`default_cache()`); None keeps nothing.

    Returns:
      f32[n, e], in the order of the texts. Cost: a forward pass for each new text; reading the keys of what this
      encoder has in the cache, and the rows of the files that hold a text asked for.

    Raises:
      RunError: the cache cannot be written.
    """
    keys = [
        hashlib.sha256(f"{encoder.fingerprint}\0{text}".encode("utf-8", "surrogatepass")).digest() for text in texts
    ]
    text_of = dict(zip(keys, texts, strict=True))
    # One folder for each encoder: the keys of others need not be read.
    folder = None if cache is None else Path(cache) / encoder.fingerprint[:_KEY_BYTES]
    rows = {} if folder is None else _cached(folder, text_of.keys())
    missing = [key for key in text_of if key not in rows]
    for start in range(0, len(missing), _TEXTS_PER_FILE):
        chunk = missing[start : start + _TEXTS_PER_FILE]
        computed = encoder.encode([text_of[key] for key in chunk])
        rows.update(zip(chunk, computed, strict=True))
        if folder is not None:
            _write(folder, chunk, computed)
    return np.stack([rows[key] for key in keys]) if keys else encoder.encode([])


def _cached(folder: Path, wanted: Set[bytes]) -> dict[bytes, np.ndarray]:
    """The rows in a folder whose key is wanted."""
    found: dict[bytes, np.ndarray] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            found.update(open_safetensors(file, lambda handle: _rows(handle, wanted - found.keys())))
        except ModelError:
            continue  # truncated by a full disk, say: what it held is computed again
    return found


def _rows(handle: Any, wanted: Set[bytes]) -> dict[bytes, np.ndarray]:
    keys = [key.tobytes() for key in handle.get_tensor("keys")]
    here = [i for i, key in enumerate(keys) if key in wanted]
    rows = handle.get_tensor("rows")[here] if here else ()
    return {keys[i]: row for i, row in zip(here, rows, strict=True)}


def _write(folder: Path, keys: list[bytes], rows: np.ndarray) -> None:
    """Writes a file under a name made of its keys, in one move: a reader sees all of it or nothing."""
    name = hashlib.sha256(b"".join(keys)).hexdigest()[:_KEY_BYTES]
    table = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), _KEY_BYTES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".part", delete=False) as file:
            try:
                file.write(save({"keys": table, "rows": np.ascontiguousarray(rows, np.float32)}))
                file.close()
                os.replace(file.name, folder / f"{name}.safetensors")
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise RunError(
            f"{folder}: embeddings cannot be kept here ({error.strerror or error}): name another folder as cache, or "
            "set XDG_CACHE_HOME"
        ) from error
