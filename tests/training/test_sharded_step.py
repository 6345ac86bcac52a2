"""The step on eight simulated devices against the step on one."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from greats_jax.errors import ArgumentError
from greats_jax.models import Decoder, DecoderConfig, LoraConfig, add_lora, combine, cut_layers, partition
from greats_jax.selection import get, in_groups
from greats_jax.training import (
    LanguageExample,
    Projection,
    Scoring,
    TrainState,
    has_labels,
    language_model_loss,
    make_selective_step,
    split_language_model_loss,
)
from greats_jax.training.config import MeshConfig
from greats_jax.training.mesh import make_mesh, place_decoder
from greats_jax.training.placement import Placement

CONFIG = DecoderConfig(
    family="llama", vocab_size=64, width=16, layers=3, heads=4, kv_heads=2, head_dim=4, ffn_width=32, max_length=32,
    tied=False, eos_token_ids=(1,), pad_token_id=0,
)  # fmt: skip
N, M, T, KEEP, RATE = 16, 5, 10, 8, 0.5
OPTIMIZER = optax.sgd(RATE, momentum=0.9)
MESHES = {"data": (8, 1, 1), "fsdp": (1, 8, 1), "tensor": (1, 1, 4), "all": (2, 2, 2)}
MODES: dict[str, dict[str, Any]] = {
    "one pass": {},
    "two passes": {"scoring": Scoring("two")},
    "cached": {"validation": "cached"},
    "two passes, cached": {"validation": "cached", "scoring": Scoring("two")},
    "micro-batches": {"scoring": Scoring("two", 2)},
    "projected": {"scoring": Scoring(projection=Projection(64, "projected"))},
    "groups": {"groups": 4},
    "a group for each device": {"groups": 8},
    "groups, two passes": {"groups": 4, "scoring": Scoring("two")},
    "groups, two passes, cached": {"groups": 4, "validation": "cached", "scoring": Scoring("two")},
}


def rows(seed: int, count: int) -> LanguageExample:
    """Rows of different lengths; the third has no labels."""
    rng = np.random.default_rng(seed)
    length, place = rng.integers(4, T + 1, count), np.arange(T)
    real = place < length[:, None]
    labels = real & (place >= 2) & (np.arange(count) != 2)[:, None]
    ids = rng.integers(3, CONFIG.vocab_size, (count, T)).astype(np.int32)
    quiet = jnp.zeros((count, 2), jnp.uint32), jnp.ones(count, bool)
    return LanguageExample(jnp.asarray(ids), jnp.asarray(real), jnp.asarray(labels), *quiet, {})


@functools.cache
def model_of(lora: bool, remat: str = "none") -> Decoder:
    model = Decoder(CONFIG, jax.random.key(0))
    return add_lora(model, LoraConfig(rank=2, alpha=8.0), jax.random.key(1)) if lora else model


def parts(lora: bool, mesh: Any = None) -> tuple[Any, Any, Any]:
    """Static structure, trained and frozen arrays; adapters off their start, where half of them have no gradient."""
    model = model_of(lora)
    graphdef, params, frozen = partition(model)
    if mesh is not None:
        placed = combine(graphdef, params, frozen)
        placed.mesh = mesh
        graphdef = partition(placed)[0]
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    moved = [x + 0.05 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return graphdef, jax.tree.unflatten(treedef, moved), frozen


def settings(rule: str, mode: str) -> dict[str, Any]:
    return {"objective": rule, "keep": KEEP, "learning_rate": RATE, "is_valid": has_labels, **MODES[mode]}


def trained(lora: bool, rule: str, mode: str, shape: tuple[int, int, int] | None, split: bool = False) -> list[Any]:
    """Metrics of three steps and the parameters after them."""
    mesh = None if shape is None else make_mesh(MeshConfig(*shape))
    graphdef, params, frozen = parts(lora, mesh)
    init = in_groups(get(rule), MODES[mode].get("groups", 1)).init
    state = TrainState.create(params, OPTIMIZER, memory=None if init is None else init())
    loss: Any = language_model_loss(graphdef, combine)
    if split:
        loss = split_language_model_loss(graphdef, combine, lambda tree: cut_layers(tree, 1, CONFIG.tied), 1)
    placement = None if mesh is None else place_decoder(mesh, CONFIG, state, frozen)
    step = make_selective_step(loss, OPTIMIZER, placement=placement, **settings(rule, mode))
    if placement is not None:
        state, frozen = jax.device_put(state, placement.state), jax.device_put(frozen, placement.frozen)
    seen = []
    for i in range(3):
        batches = rows(10 + i, N), rows(20 + i, M)
        if placement is not None:
            batches = placement.put_rows(batches)
        state, metrics = step(state, frozen, *batches)
        seen.append(jax.device_get(metrics))
    return [seen, jax.device_get(state.params), state]


@functools.cache
def on_one_device(lora: bool, rule: str, mode: str, split: bool = False) -> list[Any]:
    return trained(lora, rule, mode, None, split)


def assert_same(found: list[Any], expected: list[Any]) -> None:
    for ours, theirs in zip(found[0], expected[0], strict=True):
        jax.tree.map(np.testing.assert_array_equal, ours.selected, theirs.selected)
        for name in ("candidate_losses", "scores", "validation_loss", "loss", "grad_norm"):
            a, b = getattr(ours, name), getattr(theirs, name)
            scale = max([1.0, *np.abs(np.ravel(b)[np.isfinite(np.ravel(b))])])
            np.testing.assert_allclose(a, b, atol=1e-5 * scale, rtol=1e-5, err_msg=name)
        for name in ("n_valid", "n_rejected", "n_validation", "n_validation_rejected", "skipped"):
            assert getattr(ours, name) == getattr(theirs, name), name
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), found[1], expected[1])


DEFAULT = [
    ("all", False, "greats", "one pass"),
    ("all", True, "greats", "groups, two passes, cached"),
]
MORE = [
    *((mesh, lora, "greats", mode) for mesh in MESHES for lora in (True, False) for mode in MODES),
    *(
        (mesh, True, rule, "one pass")
        for mesh in MESHES
        for rule in ("max_loss", "grad_norm", "greats_adam", "layer_wise", "opus")
    ),
]


@pytest.mark.parametrize(
    ("mesh", "lora", "rule", "mode"),
    [*DEFAULT, *(pytest.param(*c, marks=pytest.mark.slow) for c in MORE if c not in DEFAULT)],
)
def test_a_mesh_gives_what_one_device_gives(mesh, lora, rule, mode):
    assert_same(trained(lora, rule, mode, MESHES[mesh]), on_one_device(lora, rule, mode))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_a_loss_in_two_parts_gives_the_same_on_a_mesh(mesh):
    assert_same(
        trained(False, "greats", "one pass", MESHES[mesh], split=True), on_one_device(False, "greats", "one pass", True)
    )


def test_the_state_keeps_its_place_from_step_to_step_and_one_program_serves_all(caplog):
    with jax.log_compiles(), caplog.at_level("WARNING"):
        *_, state = trained(True, "greats", "one pass", MESHES["fsdp"])
    compiled = [text for text in caplog.messages if text.startswith("Compiling jit(step)")]
    assert len(compiled) == 1
    kernel = state.params["layers"]["self_attn"]["q_proj"]["lora"]["a"]
    assert kernel.sharding.spec == jax.sharding.PartitionSpec(None, "fsdp", None)
    assert kernel.addressable_shards[0].data.shape == (3, 2, 2)


def test_groups_pick_among_their_own():
    metrics = on_one_device(True, "greats", "groups")[0][0]
    picked = metrics.selected.reshape(4, -1)
    assert (picked // (N // 4) == np.arange(4)[:, None]).all()


def exchanged(shape: tuple[int, int, int], mode: str) -> dict[str, list[str]]:
    """What crosses between devices in a step, by kind: the shapes in the compiled program."""
    mesh = make_mesh(MeshConfig(*shape))
    graphdef, params, frozen = parts(True, mesh)
    state = TrainState.create(params, OPTIMIZER)
    placement = place_decoder(mesh, CONFIG, state, frozen)
    step = make_selective_step(
        language_model_loss(graphdef, combine), OPTIMIZER, placement=placement, **settings("greats", mode)
    )
    text = step.lower(state, frozen, rows(0, N), rows(1, 8)).compile().as_text()
    pattern = r"= (\S.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    found: dict[str, list[str]] = {}
    for shapes, kind in re.findall(pattern, text):
        found.setdefault(kind, []).append(shapes)
    return found


def test_a_device_that_chooses_among_its_own_sends_no_candidates_gradient():
    """What crosses is a mean gradient, as in any training on several devices, and numbers for each example."""
    apart = exchanged(MESHES["data"], "a group for each device")
    assert "all-to-all" in exchanged(MESHES["data"], "one pass")
    assert set(apart) <= {"all-reduce", "all-gather"}
    sizes = [
        math.prod(map(int, re.findall(r"\d+", shape.split("]")[0].split("[")[1]))) for shape in apart["all-gather"]
    ]
    assert max(sizes) <= 4 * N


def test_a_placement_of_ones_own_model_needs_only_a_mesh():
    mesh = make_mesh(MeshConfig(8, 1, 1))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params = {"w": jnp.arange(12.0).reshape(4, 3)}
    state = TrainState.create(params, OPTIMIZER)
    placement = Placement(mesh, jax.tree.map(lambda _: everywhere, state), everywhere, ("data",))

    def loss(params, frozen, row):
        return jnp.mean((row["x"] @ params["w"]) ** 2)

    batches = [{"x": np.random.default_rng(i).normal(size=(8, 4)).astype(np.float32)} for i in range(2)]
    chosen = []
    for given in (None, placement):
        step = make_selective_step(loss, OPTIMIZER, keep=3, learning_rate=RATE, placement=given)
        chosen.append(step(TrainState.create(params, OPTIMIZER), {}, *batches)[1].selected)
    np.testing.assert_array_equal(*chosen)


def test_groups_and_micro_batches_together_are_refused():
    with pytest.raises(ArgumentError, match="both cut the candidates"):
        make_selective_step(lambda p, f, r: 0.0, OPTIMIZER, groups=2, scoring=Scoring("two", 2))
