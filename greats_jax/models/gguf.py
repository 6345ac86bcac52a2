"""Reader of GGUF files: metadata, and tensors dequantised to float32.

Every length and offset is checked against the size of the file before it is used, so a truncated or lying file gives
one `ModelError` and never a wild read or a huge allocation. Format: ggml's docs/gguf.md, versions 2 and 3,
little-endian.
"""

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from greats_jax.errors import ModelError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_BLOCK = 32  # elements in one quantised block


class Encoding(NamedTuple):
    """How a tensor type is stored: `size` bytes hold `elements` numbers."""

    name: str
    elements: int
    size: int
    decode: Callable[[np.ndarray], np.ndarray]  # u8[blocks, size] -> f32[blocks, elements]


def _halves(blocks: np.ndarray, start: int) -> np.ndarray:
    return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    # The low halves of the 16 bytes are elements 0-15, the high halves 16-31.
    return np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    return _halves(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8.0)


def _q4_1(blocks: np.ndarray) -> np.ndarray:
    return _halves(blocks, 0) * _nibbles(blocks[:, 4:]) + _halves(blocks, 2)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    return _halves(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _plain(dtype) -> Callable[[np.ndarray], np.ndarray]:
    return lambda blocks: blocks.copy().view(dtype).astype(np.float32)


ENCODINGS = {
    0: Encoding("F32", 1, 4, _plain(np.float32)),
    1: Encoding("F16", 1, 2, _plain(np.float16)),
    2: Encoding("Q4_0", _BLOCK, 18, _q4_0),
    3: Encoding("Q4_1", _BLOCK, 20, _q4_1),
    8: Encoding("Q8_0", _BLOCK, 34, _q8_0),
    30: Encoding("BF16", 1, 2, _plain(ml_dtypes.bfloat16)),
}


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    encoding: Encoding
    start: int  # byte in the file
    size: int  # bytes


class GgufFile(Mapping[str, np.ndarray]):
    """A GGUF file: a mapping from tensor names to f32 arrays, decoded when asked for, and its `metadata`.

    Raises:
      ModelError: if the file is not GGUF, is damaged, or holds a tensor type that is not in `ENCODINGS`.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise ModelError(f"no file at {self.path}: name an existing .gguf file") from None
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise ModelError(f"{self.path} cannot be read ({error}): get the file again") from error
        self._position = 0
        self.metadata: dict[str, Any] = {}
        self._entries: dict[str, _Entry] = {}
        self._read_header()

    def __getitem__(self, name: str) -> np.ndarray:
        """Decodes one tensor to f32, in the row-major order of its (reversed) GGUF dimensions."""
        entry = self._entries[name]
        raw = np.frombuffer(self._bytes, np.uint8, entry.size, entry.start).reshape(-1, entry.encoding.size)
        return entry.encoding.decode(raw).reshape(entry.shape)

    def __iter__(self):
        """Iterates over tensor names."""
        return iter(self._entries)

    def __len__(self):
        """Number of tensors."""
        return len(self._entries)

    def get_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a tensor without decoding it; None if there is no such tensor."""
        return self._entries[name].shape if name in self._entries else None

    def _damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.path} is damaged or incomplete ({what}): get the file again")

    def _take(self, size: int) -> bytes:
        if size > len(self._bytes) - self._position:
            raise self._damaged(f"{size} bytes wanted at {self._position}, but the file ends at {len(self._bytes)}")
        self._position += size
        return self._bytes[self._position - size : self._position]

    def _number(self, code: str):
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _string(self) -> str:
        raw = self._take(self._number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"text at byte {self._position - len(raw)} is not UTF-8") from error

    def _value(self, kind: int, key: str):
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise self._damaged(f"metadata {key!r} has unknown type {kind}")
        item, count = self._number("I"), self._number("Q")
        if item in _SCALARS:
            code = _SCALARS[item]
            return list(struct.unpack(f"<{count}{code}", self._take(count * struct.calcsize("<" + code))))
        if item != _STRING:
            raise self._damaged(f"metadata {key!r} is an array of type {item}")
        if count > (len(self._bytes) - self._position) // 8:
            raise self._damaged(f"metadata {key!r} claims {count} texts, more than the file could hold")
        return [self._string() for _ in range(count)]

    def _read_header(self) -> None:
        if self._take(4) != b"GGUF":
            raise ModelError(f"{self.path} is not a GGUF file: it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            raise ModelError(f"{self.path} is GGUF version {version}: versions 2 and 3 are read (little-endian)")
        tensors, pairs = self._number("Q"), self._number("Q")
        for _ in range(pairs):  # a lying count ends at the end of the file
            key = self._string()
            self.metadata[key] = self._value(self._number("I"), key)
        infos = [self._tensor_info() for _ in self._counted(tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment % 8:
            raise self._damaged(f"alignment is {alignment!r}")
        data = math.ceil(self._position / alignment) * alignment
        for name, dims, kind, offset in infos:
            self._entries[name] = self._placed(name, dims, kind, data + offset)
        if len(self._entries) != tensors:
            raise self._damaged("two tensors have the same name")
        end = data
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1].start):
            if entry.start < end:
                raise self._damaged(f"tensor {name} overlaps what comes before it")
            end = entry.start + entry.size

    def _counted(self, count: int) -> range:
        if count > (len(self._bytes) - self._position) // 24:  # the least that a tensor's description takes
            raise self._damaged(f"it claims {count} tensors, more than it could hold")
        return range(count)

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, rank = self._string(), self._number("I")
        if not 1 <= rank <= 4:
            raise self._damaged(f"tensor {name} has {rank} dimensions")
        dims = tuple(self._number("Q") for _ in range(rank))
        return name, dims, self._number("I"), self._number("Q")

    def _placed(self, name: str, dims: tuple[int, ...], kind: int, start: int) -> _Entry:
        encoding = ENCODINGS.get(kind)
        if encoding is None:
            known = ", ".join(known.name for known in ENCODINGS.values())
            raise ModelError(f"{self.path}: tensor {name} has type {kind}, which is not read: use a file with {known}")
        count = math.prod(dims)
        if count < 1 or dims[0] % encoding.elements:
            raise self._damaged(f"tensor {name} of type {encoding.name} has shape {list(dims)}")
        size = count // encoding.elements * encoding.size
        if start + size > len(self._bytes):
            raise self._damaged(f"tensor {name} ends at byte {start + size} of {len(self._bytes)}")
        return _Entry(dims[::-1], encoding, start, size)
