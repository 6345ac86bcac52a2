"""A GGUF file as a decoder: its configuration, and its tensors under Hugging Face names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from greats_jax.errors import ModelError
from greats_jax.models.checkpoint import Stored
from greats_jax.models.config import DecoderConfig, RopeConfig
from greats_jax.models.gguf import GgufFile

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def read(path: Path) -> tuple[DecoderConfig, Mapping[str, Stored]]:
    """The configuration and tensors of a GGUF file of the Llama architecture.

    Raises:
      ModelError: if the file is damaged or of another architecture.
    """
    file = GgufFile(path)
    config = read_config(file)
    return config, _HuggingFaceNames(file, config)


def read_config(file: GgufFile) -> DecoderConfig:
    """The configuration in the metadata.

    Raises:
      ModelError: if a setting is missing or the architecture is not Llama's.
    """
    architecture = file.metadata.get("general.architecture")
    if architecture != "llama":
        raise ModelError(
            f"{file.path} holds architecture {architecture!r}: only llama is read from GGUF; use the model's directory"
        )
    width, heads = _integer(file, "llama.embedding_length"), _integer(file, "llama.attention.head_count")
    head_dim = _integer(file, "llama.attention.key_length", width // max(heads, 1))
    if _integer(file, "llama.rope.dimension_count", head_dim) != head_dim:
        raise ModelError(f"{file.path}: rotary embedding of a part of the head is not supported")
    vocab = file.get_shape("token_embd.weight")
    eos = file.metadata.get("tokenizer.ggml.eos_token_id")
    return DecoderConfig(
        family="llama",
        vocab_size=vocab[0] if vocab else _integer(file, "llama.vocab_size"),
        width=width,
        layers=_integer(file, "llama.block_count"),
        heads=heads,
        kv_heads=_integer(file, "llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_width=_integer(file, "llama.feed_forward_length"),
        max_length=_integer(file, "llama.context_length"),
        # The file holds float32; rounding gives back the decimal that was meant.
        norm_eps=float(f"{_number(file, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        tied="output.weight" not in file,
        rope=_rope(file),
        bos_token_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=() if eos is None else (eos,),
        pad_token_id=file.metadata.get("tokenizer.ggml.padding_token_id"),
    )


class _Decoded(NamedTuple):
    """A tensor that is decoded whole whenever a part of it is asked for: its numbers are packed in blocks."""

    shape: tuple[int, ...]
    decode: Callable[[], np.ndarray]

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.decode()[index]


class _HuggingFaceNames(Mapping[str, Stored]):
    """The tensors of a Llama GGUF file as transformers would store them."""

    def __init__(self, file: GgufFile, config: DecoderConfig):
        self._file, self._config = file, config
        self._source = {_translated(name): name for name in file}

    def __getitem__(self, name: str) -> Stored:
        """One tensor; rows of queries and keys are put back in transformers' order."""
        shape = self._file.get_shape(self._source[name])
        assert shape is not None  # the name is one of the file's
        return _Decoded(shape, lambda: self._read(name))

    def _read(self, name: str) -> np.ndarray:
        array = self._file[self._source[name]]
        for part, heads in (("q_proj", self._config.heads), ("k_proj", self._config.kv_heads)):
            if part in name and len(array) == heads * self._config.head_dim:
                # ggml rotates neighbouring channels, transformers the two halves of a head.
                array = array.reshape(heads, self._config.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(array.shape)
        return array

    def __iter__(self):
        """Iterates over the translated names."""
        return iter(self._source)

    def __len__(self):
        """Number of tensors."""
        return len(self._source)


def _translated(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
    return name  # unknown tensors keep their name and are refused when the model is filled


def _rope(file: GgufFile) -> RopeConfig:
    theta = _number(file, "llama.rope.freq_base", 10000.0)
    kind = file.metadata.get("llama.rope.scaling.type", "none")
    if kind == "none":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", _number(file, "llama.rope.scaling.factor"))
    raise ModelError(f"{file.path}: rope scaling {kind!r} is not read from GGUF: use the model's directory")


def _number(file: GgufFile, key: str, default: float | None = None) -> float:
    value: Any = file.metadata.get(key, default)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ModelError(f"{file.path}: metadata {key} is {value!r}, not a number: get the file again")
    return float(value)


def _integer(file: GgufFile, key: str, default: int | None = None) -> int:
    value: Any = file.metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError(f"{file.path}: metadata {key} is {value!r}, not a whole number: get the file again")
    return value
