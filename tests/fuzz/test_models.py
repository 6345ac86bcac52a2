"""Model files: GGUF, safetensors with their configuration and index, tokenizers, adapters."""

import json
import shutil
import struct

import jax
import numpy as np
import pytest
from fuzzing import bounded, examples, fuzz, mutated, numbers, texts, values
from gguf_files import ARRAY, BOOL, F32, I32, STRING, TOKENIZER, U32, U64, gguf, metadata, tensors_of
from hypothesis import strategies as st

from greats_jax.errors import ModelError
from greats_jax.models import (
    Decoder,
    DecoderConfig,
    LoraConfig,
    RopeConfig,
    add_lora,
    from_pretrained,
    load_adapter,
    load_tokenizer,
    save_adapter,
    save_pretrained,
)
from greats_jax.models.checkpoint import Stored, Tensors, write_tensors
from greats_jax.models.gguf import GgufFile

CONFIG = DecoderConfig(
    family="llama", vocab_size=12, width=8, layers=2, heads=2, kv_heads=1, head_dim=4, ffn_width=12, max_length=16,
    rope=RopeConfig(100.0), tied=True, eos_token_ids=(2,),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Decoder:
    return Decoder(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def content(model) -> bytes:
    """A model and a tokenizer in one GGUF file."""
    return gguf(metadata(CONFIG) | TOKENIZER, tensors_of(model))


def whole(tensor: Stored) -> np.ndarray:
    return tensor[tuple(slice(0, size) for size in tensor.shape)]


@pytest.fixture
def folder(model, tmp_path):
    """A model as a Hugging Face folder, in two shards."""
    save_pretrained(model, tmp_path / "model")
    tensors = Tensors(tmp_path / "model")
    parts = [(name, lambda name=name: whole(tensors[name])) for name in tensors]
    (tmp_path / "shards").mkdir()
    write_tensors(parts, tmp_path / "shards", max_shard_bytes=1500)
    shutil.copy(tmp_path / "model" / "config.json", tmp_path / "shards")
    return tmp_path


@examples
def test_a_damaged_gguf_file_is_refused_or_read(examples, content, tmp_path):
    path = tmp_path / "model.gguf"

    def load(raw: bytes) -> None:
        path.write_bytes(raw)
        try:
            load_tokenizer(path)
        finally:
            hash(from_pretrained(path).config)

    fuzz(load, mutated(content, header=content.index(b"output_norm") + 60), examples)


scalars = st.one_of(
    st.tuples(st.just(U32), st.sampled_from([0, 1, 2, 3, 7, 2**31, 2**32 - 1])),
    st.tuples(st.just(I32), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just(U64), st.sampled_from([0, 1, 2**40, 2**64 - 1])),
    st.tuples(st.just(F32), st.floats(width=32)),
    st.tuples(st.just(BOOL), st.booleans()),
    st.tuples(st.just(STRING), st.text(max_size=9)),
    st.tuples(st.just(ARRAY), st.tuples(st.just(STRING), st.lists(st.text(max_size=4), max_size=4))),
    st.tuples(st.just(ARRAY), st.tuples(st.just(I32), st.lists(st.integers(0, 9), max_size=4))),
)


@examples
def test_any_metadata_of_a_gguf_file_is_refused_or_read(examples, model, tmp_path):
    path, tensors = tmp_path / "model.gguf", tensors_of(model)
    known = metadata(CONFIG) | TOKENIZER
    others = ["llama.rope.scaling.type", "llama.rope.scaling.factor", "tokenizer.ggml.padding_token_id"]
    keys = st.sampled_from([*known, *others, "general.alignment", "llama.vocab_size"])

    def load(changes: dict) -> None:
        path.write_bytes(gguf(known | changes, tensors))
        try:
            load_tokenizer(path)
        finally:
            hash(from_pretrained(path).config)

    fuzz(load, st.dictionaries(keys, scalars, min_size=1, max_size=2), examples)


def test_a_gguf_header_that_lies_by_billions_allocates_nothing(model, tmp_path):
    """Layers, widths and counts far beyond the file, each refused within a gigabyte."""
    path, tensors = tmp_path / "model.gguf", tensors_of(model)
    for key in ("block_count", "embedding_length", "feed_forward_length", "context_length", "attention.head_count"):
        path.write_bytes(gguf(metadata(CONFIG) | {f"llama.{key}": (U32, 2**32 - 4)}, tensors))
        with bounded(extra=2**30), pytest.raises(ModelError):
            from_pretrained(path)
    path.write_bytes(gguf({}, {"w": ((2**31, 2**31), 0, b"1234")}))
    with bounded(extra=2**30), pytest.raises(ModelError, match="ends at byte"):
        GgufFile(path)


@examples
@pytest.mark.parametrize("shape", ["model", "shards"])
def test_a_damaged_safetensors_file_is_refused_or_read(shape, examples, folder):
    path = min((folder / shape).glob("*.safetensors"))
    valid = path.read_bytes()

    def load(raw: bytes) -> None:
        path.write_bytes(raw)
        from_pretrained(folder / shape)

    fuzz(load, mutated(valid, header=8 + struct.unpack("<Q", valid[:8])[0]), examples)


@pytest.mark.parametrize("dtype", ["F64", "I64", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "U4", "nonsense"])
def test_a_safetensors_file_of_any_type_is_refused_or_read(dtype, folder):
    path = folder / "model" / "model.safetensors"
    header = json.dumps({"model.norm.weight": {"dtype": dtype, "shape": [8], "data_offsets": [0, 64]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 64)
    with pytest.raises(ModelError):
        from_pretrained(folder / "model")


def test_a_safetensors_header_that_lies_by_billions_allocates_nothing(folder):
    path = folder / "model" / "model.safetensors"
    for size, offsets in (([2**40], [0, 2**42]), ([2**62, 4], [0, 2**64]), ([8], [2**62, 2**62 + 32])):
        header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": size, "data_offsets": offsets}}).encode()
        for length in (len(header), 2**32, 2**63):
            path.write_bytes(struct.pack("<Q", length) + header + b"\0" * 64)
            with bounded(extra=2**30), pytest.raises(ModelError, match="damaged"):
                from_pretrained(folder / "model")


def changed_json(path, keys):
    """Documents like the one at `path` with a few values replaced, or no such document at all."""
    whole = json.loads(path.read_text())
    some = st.dictionaries(st.sampled_from(sorted({*whole, *keys})), st.one_of(values, numbers), max_size=2)
    return st.one_of(some.map(lambda change: whole | change), values)


def write_json(path, value) -> None:
    try:
        path.write_text(json.dumps(value))
    except ValueError:  # an integer of thousands of digits
        path.write_text("[" * 5000)


@examples
def test_any_configuration_of_a_model_is_refused_or_read(examples, folder):
    path = folder / "model" / "config.json"
    keys = ["model_type", "rope_scaling", "rope_parameters", "head_dim", "sliding_window", "layer_types", "auto_map",
            "quantization_config", "max_position_embeddings", "attention_bias", "architectures"]  # fmt: skip

    def load(value) -> None:
        write_json(path, value)
        hash(from_pretrained(folder / "model").config)

    fuzz(load, changed_json(path, keys), examples)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])
def test_a_configuration_that_lies_by_billions_allocates_nothing(family, folder):
    path = folder / "model" / "config.json"
    whole = json.loads(path.read_text()) | {"model_type": family}
    sizes = ["num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size", "num_attention_heads"]
    for key in sizes if family != "gpt2" else ["n_layer", "n_embd", "vocab_size", "n_inner", "n_positions"]:
        path.write_text(json.dumps(whole | {key: 2**40}))
        with bounded(extra=2**30), pytest.raises(ModelError):
            from_pretrained(folder / "model")


@examples
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "generation_config.json"])
def test_any_file_beside_the_weights_is_refused_or_read(name, examples, folder):
    path = folder / "shards" / name
    if not path.exists():
        path.write_text('{"eos_token_id": 2}')
    files = [entry.name for entry in (folder / "shards").iterdir()] + [
        "../model/model.safetensors",
        "/etc/passwd",
        "..",
    ]
    places = st.dictionaries(st.sampled_from(list(Tensors(folder / "shards"))), st.sampled_from(files))
    strange = st.one_of(changed_json(path, ["weight_map"]), st.fixed_dictionaries({"weight_map": places}))

    def load(value) -> None:
        write_json(path, value)
        hash(from_pretrained(folder / "shards").config)

    fuzz(load, strange, examples)


@examples
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_refused_or_read(name, examples, model, tmp_path):
    save_adapter(add_lora(model, LoraConfig(rank=2), jax.random.key(0)), tmp_path / "adapter")
    path = tmp_path / "adapter" / name
    valid = path.read_bytes()

    def load(value) -> None:
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            write_json(path, value)
        load_adapter(model, tmp_path / "adapter")

    binary = name.endswith(".safetensors")
    header = 8 + struct.unpack("<Q", valid[:8])[0] if binary else None
    inputs = mutated(valid, header) if binary else st.one_of(mutated(valid), changed_json(path, ["use_dora"]))
    fuzz(load, inputs, examples)


def test_an_adapter_that_lies_by_billions_allocates_nothing(model, tmp_path):
    save_adapter(add_lora(model, LoraConfig(rank=2), jax.random.key(0)), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 2**40}))
    with bounded(extra=2**30), pytest.raises(ModelError):
        load_adapter(model, tmp_path)


@examples
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_refused_or_read(name, examples, make_tokenizer, tmp_path):
    make_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / name
    inputs = st.one_of(
        mutated(path.read_bytes()), changed_json(path, ["tokenizer_class", "auto_map", "model_max_length"])
    )

    def load(value) -> None:
        if isinstance(value, bytes):
            path.write_bytes(value)
        else:
            write_json(path, value)
        load_tokenizer(tmp_path)

    fuzz(load, inputs, examples)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_json_that_is_nested_without_end_is_one_line(name, folder):
    (folder / "model" / name).write_text('{"a":' * 100_000)
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        from_pretrained(folder / "model")


@examples
def test_any_name_of_a_model_is_refused_or_found(examples):
    prefixes = st.sampled_from(["", "package:", "package:..", "~", "/", "../", "hf://", "C:\\"])
    fuzz(from_pretrained, st.tuples(prefixes, texts).map("".join), examples)
