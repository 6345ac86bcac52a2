"""LoRA adapters in PEFT's files: adapter_config.json and adapter_model.safetensors."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from greats_jax.errors import ModelError
from greats_jax.models.checkpoint import open_safetensors, read_json
from greats_jax.models.config import LoraConfig, dtype_named
from greats_jax.models.decoder import Decoder
from greats_jax.models.families import family_named
from greats_jax.models.layers import LoraParam, LowRank
from greats_jax.models.lora import ALL_LINEAR, add_lora, linear_maps
from greats_jax.models.sources import one_line

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# What PEFT can do to an adapter beyond A and B; each changes the result, so an adapter that uses it is refused.
_UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layers_to_transform",
    "layer_replication",
    "target_parameters",
    "exclude_modules",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "lora_bias",
)
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others also change the base weights


def save_adapter(model: Decoder, folder: str | Path, base_model: str | None = None) -> None:
    """Writes the adapters as PEFT does.

    Args:
      model: a model with adapters.
      folder: where to write; created if missing.
      base_model: hub id or directory of the base model, for those who load the adapter.

    Raises:
      ModelError: if there are no adapters, or the folder cannot be written or already holds an adapter.
    """
    folder = Path(folder)
    if model.lora is None:
        raise ModelError("the model has no LoRA adapters to save: use save_pretrained for full weights")
    for name in (CONFIG, WEIGHTS):
        if (folder / name).exists():
            raise ModelError(f"{folder} already holds {name}: name a new folder; nothing was overwritten")
    tensors = {}
    for path, adapter in _adapters(model).items():
        a, b = (np.asarray(jax.device_get(factor[...])) for factor in (adapter.a, adapter.b))
        for layer in range(model.config.layers):
            name = _PREFIX + _module_name(model, path).format(layer)
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[layer].T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b[layer].T)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": model.lora.rank,
        "lora_alpha": model.lora.alpha,
        "lora_dropout": model.lora.dropout,
        "target_modules": list(model.lora.targets),
        "fan_in_fan_out": not _transposed(model),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "layers_to_transform": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be written ({one_line(error)}): make room or name another folder") from error


def load_adapter(model: Decoder, folder: str | Path) -> Decoder:
    """Returns the model with the adapters in `folder`, which PEFT or `save_adapter` wrote.

    Raises:
      ModelError: if the files are missing or damaged, use what is not supported here, or do not fit the model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"no adapter at {folder}: name the directory that holds {CONFIG}")
    config = read_adapter_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}: adapters are read from safetensors only")
    tensors: dict[str, np.ndarray] = open_safetensors(
        folder / WEIGHTS,
        lambda handle: {name: handle.get_tensor(name) for name in handle.keys()},  # noqa: SIM118
    )
    for name, array in tensors.items():
        # Before adapters of that rank are made: a file that lies about it would fill the memory.
        if name.endswith(".lora_A.weight") and array.shape[:1] != (config.rank,):
            raise ModelError(f"{folder / CONFIG} says r is {config.rank}, but {name} has shape {list(array.shape)}")
    if not tensors:
        raise ModelError(f"{folder / WEIGHTS} holds no tensor: get the file again")
    model = add_lora(model, config, jax.random.key(0))
    dtype = dtype_named(config.dtype)
    for path, adapter in _adapters(model).items():
        name = _PREFIX + _module_name(model, path)
        for letter in "ab":
            shape = getattr(adapter, letter).shape
            stacked = [
                _taken(tensors, f"{name.format(layer)}.lora_{letter.upper()}.weight", shape[:0:-1], folder).T
                for layer in range(model.config.layers)
            ]
            setattr(adapter, letter, LoraParam(jnp.asarray(np.stack(stacked).astype(dtype))))
    if tensors:
        raise ModelError(
            f"{folder / WEIGHTS} holds {len(tensors)} tensors that this model has no place for ({min(tensors)}): "
            "load it onto the base model it was trained for"
        )
    return model


def read_adapter_config(folder: Path) -> LoraConfig:
    """The settings in adapter_config.json.

    Raises:
      ModelError: if they are missing, damaged or ask for what is not supported here.
    """
    path = folder / CONFIG
    settings: dict[str, Any] = read_json(path)
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type is {settings.get('peft_type')!r}: only LORA adapters are read")
    used = [name for name in _UNSUPPORTED if settings.get(name)]
    if settings.get("bias", "none") != "none":
        used.append("bias")
    if settings.get("init_lora_weights") not in _PLAIN_STARTS:
        used.append("init_lora_weights")
    if used:
        raise ModelError(
            f"{path}: {', '.join(used)} is not supported: merge the adapter into its model with peft first"
        )
    targets, rank = settings.get("target_modules"), settings.get("r")
    alpha, dropout = settings.get("lora_alpha"), settings.get("lora_dropout", 0.0)
    if targets == ALL_LINEAR:
        targets = [ALL_LINEAR]
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise ModelError(f"{path}: target_modules is {targets!r}: it must be a list of names")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or not isinstance(dropout, int | float):
        raise ModelError(f"{path}: r, lora_alpha and lora_dropout must be numbers: get the file again")
    if max(abs(rank), abs(alpha), abs(dropout)) >= 2**31:
        raise ModelError(f"{path}: r, lora_alpha or lora_dropout is beyond all bounds: get the file again")
    return LoraConfig(rank, float(alpha), float(dropout), tuple(targets))


def _adapters(model: Decoder) -> dict[str, LowRank]:
    return {path: linear.lora for path, linear in linear_maps(model).items() if linear.lora is not None}


def _module_name(model: Decoder, path: str) -> str:
    wanted = ("layers", *path.split("."), "kernel")
    for weight in family_named(model.config.family).weights(model.config):
        if weight.path == wanted:
            return weight.name.removesuffix(".weight")
    raise AssertionError(f"no checkpoint name for {path}")


def _transposed(model: Decoder) -> bool:
    weights = family_named(model.config.family).weights(model.config)
    return any(weight.transposed for weight in weights if weight.path[-1] == "kernel")


def _taken(tensors: dict[str, np.ndarray], name: str, shape: tuple[int, ...], folder: Path) -> np.ndarray:
    if name not in tensors:
        raise ModelError(f"{folder / WEIGHTS} has no {name}: load it onto the base model it was trained for")
    array = tensors.pop(name)
    if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ModelError(
            f"{folder / WEIGHTS}: {name} is {array.dtype}{list(array.shape)}, but the model needs {list(shape)}: "
            "load it onto the base model it was trained for"
        )
    return array
