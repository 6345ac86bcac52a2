"""GGUF files written byte by byte, and every way to break them."""

import struct

import ml_dtypes
import numpy as np
import pytest
from gguf_files import ARRAY, BOOL, F32, I32, STRING, TOKENIZER, U32, U64, f32, gguf, metadata, tensors_of, text

from greats_jax.errors import ModelError
from greats_jax.models import from_pretrained, load_tokenizer, save_pretrained
from greats_jax.models.gguf import GgufFile


@pytest.fixture
def written(tmp_path):
    def write(*args, **kwargs):
        path = tmp_path / "model.gguf"
        path.write_bytes(gguf(*args, **kwargs))
        return path

    return write


@pytest.mark.parametrize("tied", [False, True])
def test_a_llama_file_is_the_model_it_was_made_from(tied, tiny, written, ids, logits_of):
    from greats_jax.models import RopeConfig

    model = tiny(rope=RopeConfig(500.0), tied=tied, eos_token_ids=(2,))
    loaded = from_pretrained(written(metadata(model.config), tensors_of(model)))
    assert loaded.config == model.config
    np.testing.assert_array_equal(logits_of(loaded, ids), logits_of(model, ids))


def test_a_gguf_model_is_saved_as_a_directory(tiny, written, tmp_path):
    model = tiny("smollm2")
    loaded = from_pretrained(written(metadata(model.config), tensors_of(model)))
    save_pretrained(loaded, tmp_path / "folder")
    assert from_pretrained(tmp_path / "folder").config == loaded.config


def slow_decode(kind, raw):
    """Block formats decoded one element at a time, as ggml's documentation has them."""
    out = []
    size = {2: 18, 3: 20, 8: 34}[kind]
    for start in range(0, len(raw), size):
        block = raw[start : start + size]
        d = float(np.frombuffer(block[:2], np.float16)[0])
        if kind == 8:
            out += [d * (byte - 256 if byte > 127 else byte) for byte in block[2:]]
            continue
        low = float(np.frombuffer(block[2:4], np.float16)[0]) if kind == 3 else -8.0 * d
        packed = block[4:] if kind == 3 else block[2:]
        out += [d * (byte % 16) + low for byte in packed] + [d * (byte // 16) + low for byte in packed]
    return np.array(out, np.float32)


@pytest.mark.parametrize(("kind", "size"), [(2, 18), (3, 20), (8, 34)])
def test_block_encodings(kind, size, written):
    rng = np.random.default_rng(kind)
    blocks = rng.integers(0, 256, (6, size), dtype=np.uint8)
    blocks[:, :2] = rng.normal(size=(6, 1)).astype(np.float16).view(np.uint8)
    if kind == 3:
        blocks[:, 2:4] = rng.normal(size=(6, 1)).astype(np.float16).view(np.uint8)
    file = GgufFile(written({}, {"w": ((64, 3), kind, blocks.tobytes())}))
    assert file["w"].shape == (3, 64)
    np.testing.assert_allclose(file["w"].ravel(), slow_decode(kind, blocks.tobytes()), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("kind", "dtype"), [(0, np.float32), (1, np.float16), (30, ml_dtypes.bfloat16)])
def test_plain_encodings(kind, dtype, written):
    array = np.random.default_rng(0).normal(size=(3, 5)).astype(dtype)
    file = GgufFile(written({}, {"a": f32(np.ones(3)), "w": ((5, 3), kind, array.tobytes())}))
    np.testing.assert_array_equal(file["w"], array.astype(np.float32))
    assert list(file) == ["a", "w"]


def test_metadata_of_every_kind(written):
    wanted = {
        "a": (U32, 7),
        "b": (I32, -7),
        "c": (F32, 0.5),
        "d": (BOOL, True),
        "e": (STRING, "Ġé"),
        "f": (ARRAY, (STRING, ["x", "", "yz"])),
        "g": (ARRAY, (I32, [1, -2])),
        "h": (U64, 2**40),
    }
    read = GgufFile(written(wanted, {})).metadata
    assert read == {key: content[1] if kind == ARRAY else content for key, (kind, content) in wanted.items()}


def test_alignment_is_obeyed(written):
    tensors = {"a": f32(np.arange(3.0)), "b": f32(np.arange(4.0))}
    file = GgufFile(written({"general.alignment": (U32, 256)}, tensors, alignment=256))
    np.testing.assert_array_equal(file["b"], np.arange(4.0))


def test_a_file_cut_anywhere_is_refused(tiny, tmp_path):
    model = tiny("smollm2", layers=1)
    full = gguf(metadata(model.config), tensors_of(model))
    path = tmp_path / "cut.gguf"
    for end in [*range(0, 900, 7), *range(900, len(full), 997), len(full) - 1]:
        path.write_bytes(full[:end])
        with pytest.raises(ModelError, match=r"damaged or incomplete|cannot be read|not a GGUF") as caught:
            GgufFile(path)
        assert "\n" not in str(caught.value)


def test_any_changed_byte_gives_a_model_or_one_error(tiny, tmp_path):
    model = tiny("smollm2", layers=1)
    full = bytearray(gguf(metadata(model.config), tensors_of(model)))
    header = full.index(b"output_norm") + 60
    rng = np.random.default_rng(0)
    path = tmp_path / "changed.gguf"
    refused = 0
    for position in range(0, header, 3):
        changed = bytearray(full)
        changed[position] = int(rng.integers(256))
        path.write_bytes(changed)
        try:
            dict(GgufFile(path))
        except ModelError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({}, {}, {"version": 1}), "GGUF version 1"),
        (({}, {}, {"counts": (2**60, 0)}), "more than it could hold"),
        (({}, {}, {"counts": (0, 2**60)}), "but the file ends at"),
        (({"general.alignment": (U32, 0)}, {}, {}), "alignment is 0"),
        (({"a": (U32, 1)}, {"w": ((8,), 12, b"")}, {}), "tensor w has type 12, which is not read"),
        (({}, {"w": ((8,), 3, b"x" * 20)}, {}), r"of type Q4_1 has shape \[8\]"),
        (({}, {"w": ((2**61, 2**61), 0, b"")}, {}), "tensor w ends at byte"),
        (({}, {"w": ((0, 4), 0, b"")}, {}), r"has shape \[0, 4\]"),
        (({}, {"w": ((1, 1, 1, 1, 1), 0, b"1234")}, {}), "has 5 dimensions"),
        (({}, {"w": ((9,), 0, b"x" * 32), "v": ((1,), 0, b"1234")}, {}), "tensor v overlaps"),
    ],
)
def test_lies_are_refused(arguments, message, written):
    *content, options = arguments
    with pytest.raises(ModelError, match=message):
        GgufFile(written(*content, **options))


def test_lying_arrays_and_texts_are_refused(tmp_path):
    path = tmp_path / "lie.gguf"
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    for content in (
        text("k") + struct.pack("<IIQ", ARRAY, STRING, 2**50),
        text("k") + struct.pack("<IIQ", ARRAY, U32, 2**62),
        text("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1),
        text("k") + struct.pack("<I", 77),
        struct.pack("<Q", 2**63),
        struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<II", U32, 1),
    ):
        path.write_bytes(start + content + b"\0" * 64)
        with pytest.raises(ModelError, match="damaged or incomplete"):
            GgufFile(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": (STRING, "bert")}, "holds architecture 'bert': only llama"),
        ({"llama.block_count": (STRING, "many")}, "block_count is 'many', not a whole number"),
        ({"llama.block_count": (U32, 9)}, r"has no tensor model\.layers\.3"),
        ({"llama.feed_forward_length": (U32, 7)}, "has shape"),
        ({"llama.attention.layer_norm_rms_epsilon": (STRING, "x")}, "epsilon is 'x', not a number"),
        ({"llama.rope.dimension_count": (U32, 2)}, "part of the head"),
        ({"llama.rope.scaling.type": (STRING, "yarn")}, "rope scaling 'yarn'"),
    ],
)
def test_models_that_are_not_supported_are_refused(change, message, tiny, written):
    model = tiny("smollm2")
    with pytest.raises(ModelError, match=message):
        from_pretrained(written(metadata(model.config) | change, tensors_of(model)))


def test_an_unknown_tensor_is_refused(tiny, written):
    model = tiny("smollm2")
    tensors = tensors_of(model) | {"rope_freqs.weight": f32(np.ones(3))}
    with pytest.raises(ModelError, match=r"no place for \(rope_freqs\.weight\)"):
        from_pretrained(written(metadata(model.config), tensors))


def tokens(tokenizer, content):
    return tokenizer.convert_ids_to_tokens(tokenizer(content).input_ids)


def test_tokenizer_of_the_metadata(written):
    tokenizer = load_tokenizer(written(TOKENIZER, {}))
    # Digits one by one although "12" is a token; the special token whole.
    assert tokens(tokenizer, "ab c<|end|>12") == ["ab", "Ġc", "<|end|>", "1", "2"]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|start|>", "<|end|>", None)
    assert tokenizer.model_max_length == 99
    assert tokenizer.decode(tokenizer("ab c12").input_ids) == "ab c12"
    assert tokenizer.decode(tokenizer("ab<|end|>").input_ids, skip_special_tokens=True) == "ab"
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False)
    assert rendered == "<|start|>ab<|end|>"


def test_the_split_before_merging_is_that_of_the_file(written):
    tokenizer = load_tokenizer(written(TOKENIZER | {"tokenizer.ggml.pre": (STRING, "gpt-2")}, {}))
    assert tokens(tokenizer, "ab12") == ["ab", "12"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": (STRING, "llama")}, "kind 'llama'"),
        ({"tokenizer.ggml.pre": (STRING, "unheard-of")}, "'unheard-of'"),
        ({"tokenizer.ggml.tokens": (U32, 3)}, "has no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": (ARRAY, (STRING, ["a z"]))}, "merge 'a z' names a token"),
        ({"tokenizer.ggml.merges": (ARRAY, (STRING, ["ab"]))}, "merge 'ab'"),
    ],
)
def test_tokenizers_that_are_not_read_are_refused(change, message, written):
    with pytest.raises(ModelError, match=message):
        load_tokenizer(written(TOKENIZER | change, {}))
