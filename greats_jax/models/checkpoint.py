"""Hugging Face directories: config.json and safetensors, read and written without torch."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from greats_jax.errors import ModelError
from greats_jax.models.config import MAX_LAYERS, DecoderConfig
from greats_jax.models.families import family_named
from greats_jax.models.families.family import token_ids
from greats_jax.models.sources import one_line

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
MAX_SHARD_BYTES = 5 * 10**9


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      ModelError: if the file is missing, unreadable or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} has no {path.name}: name a directory as save_pretrained writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({one_line(error)}): get the file again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, not an object: get the file again")
    return value


def read_config(folder: Path) -> DecoderConfig:
    """The configuration of a Hugging Face directory, as written by transformers 4 or 5.

    Raises:
      ModelError: if it is missing, broken, or describes a model that this package does not have.
    """
    path = folder / "config.json"
    if not path.is_file() and (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter, not a model: load its base model, then load_adapter(model, folder)"
        )
    settings = read_json(path)
    if "model_type" not in settings:
        raise ModelError(f"{path} has no model_type: name the directory of a language model")
    if settings.get("quantization_config"):
        raise ModelError(f"{path}: quantised weights are not supported: use the model's float32 or bfloat16 version")
    family = family_named(settings["model_type"])
    for key in ("num_hidden_layers", "n_layer"):
        layers = settings.get(key)
        if isinstance(layers, int) and layers > MAX_LAYERS:  # transformers makes a list of them
            raise ModelError(f"{path}: {key} is {layers}; a model has at most {MAX_LAYERS}: get the file again")
    import transformers

    try:
        # The named class, never AutoConfig: code that comes with the checkpoint is not run.
        hf = getattr(transformers, family.config_class).from_dict(settings)
        config = family.read(hf)
    except ModelError:
        raise
    except Exception as error:  # transformers raises whatever the first wrong value leads to
        raise ModelError(
            f"{path} is not a valid {family.name} configuration ({one_line(error)}): get the file again"
        ) from error
    generation = folder / "generation_config.json"
    if generation.is_file():
        # Chat models often stop at more tokens than config.json names.
        stops = token_ids(read_json(generation).get("eos_token_id"))
        config = dataclasses.replace(config, eos_token_ids=stops or config.eos_token_ids)
    return config


def write_config(config: DecoderConfig, folder: Path) -> None:
    """Writes config.json as transformers 5 does."""
    family = family_named(config.family)
    import transformers

    settings = getattr(transformers, family.config_class)(**family.write(config)).to_dict()
    settings |= {"architectures": [family.architecture], "dtype": config.dtype}
    (folder / "config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class Stored(Protocol):
    """Something of which parts can be taken as NumPy arrays, as a NumPy array itself is."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        ...

    def __getitem__(self, index: Any, /) -> np.ndarray:
        """The part at a tuple of slices."""
        ...


class StoredTensor:
    """A tensor in a safetensors file; only the bytes of a part that is asked for are read."""

    def __init__(self, file: Path, name: str):
        self.file, self.name = file, name
        self.shape = tuple(open_safetensors(file, lambda handle: handle.get_slice(name).get_shape()))

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """Reads the part at `index`."""
        return open_safetensors(self.file, lambda handle: handle.get_slice(self.name)[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Reads all of it."""
        whole = self[tuple(slice(None) for _ in self.shape)]
        return whole if dtype is None else whole.astype(dtype)


class Tensors(Mapping[str, StoredTensor]):
    """The tensors of a directory's safetensors files."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file_of = _index(folder)

    def __getitem__(self, name: str) -> StoredTensor:
        """One tensor, of which nothing but its shape is read."""
        return StoredTensor(self._file_of[name], name)

    def __iter__(self):
        """Iterates over the names."""
        return iter(self._file_of)

    def __len__(self):
        """Number of tensors."""
        return len(self._file_of)


def write_tensors(
    tensors: list[tuple[str, Callable[[], np.ndarray]]], folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes model.safetensors, or shards with an index when there is more than `max_shard_bytes`.

    Args:
      tensors: names in order, each with a function that gives the array, so that only one shard is in memory.
      folder: an existing directory.
      max_shard_bytes: a shard is closed before it would grow past this; a larger tensor is a shard of its own.
    """
    shards: list[list[str]] = []
    pending: dict[str, np.ndarray] = {}
    total = size = 0

    def close():
        save_file(pending, folder / _shard_name(len(shards)), metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, read in tensors:
        array = np.ascontiguousarray(read())
        if pending and size + array.nbytes > max_shard_bytes:
            close()
            size = 0
        pending[name] = array
        size += array.nbytes
        total += array.nbytes
    close()
    if len(shards) == 1:
        (folder / _shard_name(0)).replace(folder / WEIGHTS)
        return
    final = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for i, name in enumerate(final):
        (folder / _shard_name(i)).replace(folder / name)
    weight_map = {tensor: final[i] for i, names in enumerate(shards) for tensor in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shard_name(i: int) -> str:
    return f"shard-{i}.safetensors.part"


def _index(folder: Path) -> dict[str, Path]:
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ModelError(f"{folder / INDEX} has no weight_map: get the file again")
        for file in sorted(set(weight_map.values())):
            if Path(file).name != file or not (folder / file).is_file():
                raise ModelError(f"{folder} has no {file}, which {INDEX} names: get the missing shard")
        files = {folder / file for file in weight_map.values()}
        present = {file: set(open_safetensors(file, lambda handle: list(handle.keys()))) for file in files}
        for name, file in weight_map.items():
            if name not in present[folder / file]:
                raise ModelError(
                    f"{folder / file} does not hold {name}, which {INDEX} places there: get the shard again"
                )
        return {name: folder / file for name, file in weight_map.items()}
    if (folder / WEIGHTS).is_file():
        return dict.fromkeys(open_safetensors(folder / WEIGHTS, lambda handle: list(handle.keys())), folder / WEIGHTS)
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        raise ModelError(
            f"{folder} has only pickled weights ({pickled[0]}), which are never loaded because they can run code: "
            "use the model's safetensors, or convert it where you trust it with transformers' save_pretrained"
        )
    raise ModelError(f"{folder} has no weights: it needs {WEIGHTS}, or shards and {INDEX}")


def open_safetensors(file: Path, read: Callable[[Any], Any]) -> Any:
    """Gives an opened safetensors file to `read`; tensors are NumPy arrays, bfloat16 included.

    Raises:
      ModelError: if the file is damaged.
    """
    try:
        with safe_open(file, framework="numpy") as handle:
            return read(handle)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"{file} is damaged ({one_line(error)}): get the file again") from error
