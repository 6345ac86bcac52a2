"""GGUF files, written byte by byte."""

import struct
from typing import Any

import numpy as np

from greats_jax.models import partition
from greats_jax.models.gguf_model import _LAYER_NAMES, _NAMES

U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind, content):
    if kind == STRING:
        return text(content)
    if kind == ARRAY:
        item, items = content
        return struct.pack("<IQ", item, len(items)) + b"".join(value(item, each) for each in items)
    return struct.pack("<" + {U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q"}[kind], content)


def gguf(metadata, tensors, *, alignment=32, version=3, counts=None):
    """The bytes of a GGUF file; tensors: name -> (dims as GGUF has them, type number, bytes)."""
    header, blob = b"", b""
    for key, (kind, content) in metadata.items():
        header += text(key) + struct.pack("<I", kind) + value(kind, content)
    for name, (dims, kind, raw) in tensors.items():
        blob += b"\0" * (-len(blob) % alignment)
        header += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, len(blob))
        blob += raw
    counted = counts or (len(tensors), len(metadata))
    start = b"GGUF" + struct.pack("<IQQ", version, *counted) + header
    return start + b"\0" * (-len(start) % alignment) + blob


def f32(array):
    return array.shape[::-1], 0, array.astype("<f4").tobytes()


def metadata(config):
    return {
        "general.architecture": (STRING, "llama"),
        "llama.embedding_length": (U32, config.width),
        "llama.block_count": (U32, config.layers),
        "llama.feed_forward_length": (U32, config.ffn_width),
        "llama.attention.head_count": (U32, config.heads),
        "llama.attention.head_count_kv": (U32, config.kv_heads),
        "llama.attention.key_length": (U32, config.head_dim),
        "llama.attention.layer_norm_rms_epsilon": (F32, config.norm_eps),
        "llama.context_length": (U32, config.max_length),
        "llama.rope.freq_base": (F32, config.rope.theta),
        "tokenizer.ggml.eos_token_id": (U32, 2),
    }


def tensors_of(model):
    """The model's weights under ggml's names, rows of queries and keys in ggml's order."""
    from greats_jax.models.families import FAMILIES

    config, params = model.config, partition(model)[1]
    names = {theirs: ours for ours, theirs in _NAMES.items()}
    parts = {theirs: ours for ours, theirs in _LAYER_NAMES.items()}
    found = {}
    for weight in FAMILIES["llama"].weights(config):
        leaf: Any = params
        for key in weight.path:
            leaf = leaf[key]
        for layer in range(config.layers) if "{}" in weight.name else (None,):
            array = np.asarray(leaf if layer is None else leaf[layer])
            array = array.T if weight.transposed else array
            name = names.get(weight.name)
            if layer is not None:
                part = weight.name.removeprefix("model.layers.{}.").removesuffix(".weight")
                name = f"blk.{layer}.{parts[part]}.weight"
                heads = {"self_attn.q_proj": config.heads, "self_attn.k_proj": config.kv_heads}.get(part)
                if heads:  # interleave the two halves of each head
                    halves = array.reshape(heads, 2, config.head_dim // 2, -1)
                    array = np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(array.shape)
            found[name] = f32(array)
    return found


TOKENS = ["<|end|>", "<|start|>", *"abc123", "Ġ", "ab", "Ġc", "12"]
TOKENIZER = {
    "general.architecture": (STRING, "llama"),
    "llama.context_length": (U32, 99),
    "tokenizer.ggml.model": (STRING, "gpt2"),
    "tokenizer.ggml.pre": (STRING, "smollm"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, TOKENS)),
    "tokenizer.ggml.token_type": (ARRAY, (I32, [3, 3] + [1] * (len(TOKENS) - 2))),
    "tokenizer.ggml.merges": (ARRAY, (STRING, ["a b", "Ġ c", "1 2"])),
    "tokenizer.ggml.bos_token_id": (U32, 1),
    "tokenizer.ggml.eos_token_id": (U32, 0),
    "tokenizer.chat_template": (STRING, "{% for m in messages %}<|start|>{{ m.content }}<|end|>{% endfor %}"),
}
