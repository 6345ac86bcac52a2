"""Time selective steps against plain ones: interleaved runs in one process, medians as ratios to the plain step.

    python scripts/benchmark_step.py lora-merged
    python scripts/benchmark_step.py full-gram --rounds 15 --json bench.json
    python scripts/benchmark_step.py small --n 32 --keep 16

Weights are random and tokens too: neither changes the cost. The plain step on n is the unit; beside each measured
ratio stands the ratio of matrix-product FLOPs of the programs, and the floor: what a step would cost if scoring were
free (forward, activation gradient and weight gradient taken as equal).
"""

import argparse
import dataclasses
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from greats_jax.ghost import reference
from greats_jax.models import Decoder, DecoderConfig, LoraConfig, RopeConfig, add_lora, combine, cut_layers, partition
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
from greats_jax.training.costs import matmul_flops

PyTree = Any
RANK = 1024  # of projected features
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model, a batch and the steps to time on it.

    Attributes:
        width: Model dimension d.
        layers: Number of layers.
        ffn: Width of the feed-forward part.
        heads: Query heads; the head size is width / heads.
        kv_heads: Key and value heads.
        vocab: Vocabulary size V; the head is tied.
        n: Candidates.
        m: Validation rows.
        keep: Candidates kept.
        tokens: Length of every row.
        rank: LoRA rank on q, k, v, o; 0 trains every parameter.
        steps: Which steps to time beside the plain ones (see STEPS).
        refresh: R of the cached steps.
        dtype: Of parameters.
        compute: Of activations.
        remat: none, full or dots.
        family: llama or gpt2.
    """

    width: int = 512
    layers: int = 8
    ffn: int = 1376
    heads: int = 8
    kv_heads: int = 8
    vocab: int = 8192
    n: int = 8
    m: int = 1
    keep: int = 4
    tokens: int = 256
    rank: int = 0
    steps: tuple[str, ...] = ("greats",)
    refresh: int = 8
    dtype: str = "float32"
    compute: str = "float32"
    remat: str = "none"
    family: str = "llama"


PRESETS = {
    "lora-merged": Setting(rank=8, steps=("greats", "first", "naive")),
    "lora-cached": Setting(rank=8, steps=("greats-cached", "first-cached")),
    "full-first-order": Setting(n=16, keep=8, tokens=128, steps=("first", "first-cached", "naive")),
    "full-gram": Setting(n=16, keep=8, tokens=128, steps=("greats", "greats-cached", "naive")),
    "small": Setting(128, 2, 344, 4, 4, 256, 16, 8, 8, 64, steps=("greats", "first", "grad-norm", "max-loss", "naive")),
    "full-projected": Setting(n=16, keep=8, tokens=128, steps=("projected", "projected-gram", "first-projected")),
    "full-upper": Setting(n=16, keep=8, tokens=128, steps=("upper", "upper-first", "upper-projected")),
    "memory": Setting(
        n=16, keep=8, tokens=128, remat="full",
        steps=("greats", "two-pass", "two-pass-micro", "two-pass-first", "naive"),
    ),
    "compile": Setting(256, 24, 688, 4, 4, 1024, 8, 1, 4, 64, steps=("greats", "first", "two-pass")),
    "gpt2": Setting(
        768, 12, 3072, 12, 12, 50304, 16, 1, 8, 512, family="gpt2",
        steps=("greats", "first", "first-cached", "projected", "upper", "naive"),
    ),
    "smollm2": Setting(576, 30, 1536, 9, 3, 49152, 16, 1, 8, 512, 16, ("greats", "first", "greats-cached", "naive")),
    "llama-8b": Setting(
        4096, 32, 14336, 32, 8, 128256, 8, 1, 4, 512, 8, ("greats", "first", "greats-cached"),
        dtype="bfloat16", compute="bfloat16",
    ),
    "llama-8b-full": Setting(
        4096, 32, 14336, 32, 8, 128256, 8, 1, 4, 512, 0, ("greats", "first", "projected", "upper-projected"),
        dtype="bfloat16", compute="bfloat16",
    ),
}  # fmt: skip


class Mode(NamedTuple):
    """A selective step: its rule, how validation enters, how scores are computed, and whether the loss is cut."""

    rule: str = "greats"
    validation: Literal["merged", "cached"] = "merged"
    scoring: Scoring = Scoring()
    upper: bool = False


STEPS = {
    "greats": Mode(),
    "first": Mode("greats_first_order"),
    "greats-cached": Mode(validation="cached"),
    "first-cached": Mode("greats_first_order", "cached"),
    "grad-norm": Mode("grad_norm"),
    "max-loss": Mode("max_loss"),
    "projected": Mode(scoring=Scoring(projection=Projection(RANK, "projected"))),
    "projected-gram": Mode(scoring=Scoring(projection=Projection(RANK))),
    "first-projected": Mode("greats_first_order", scoring=Scoring(projection=Projection(RANK, "projected"))),
    "upper": Mode(upper=True),
    "upper-first": Mode("greats_first_order", upper=True),
    "upper-projected": Mode(scoring=Scoring(projection=Projection(RANK, "projected")), upper=True),
    "two-pass": Mode(scoring=Scoring("two")),
    "two-pass-first": Mode("greats_first_order", scoring=Scoring("two")),
    "two-pass-cached": Mode(validation="cached", scoring=Scoring("two")),
    "two-pass-micro": Mode(scoring=Scoring("two", 4)),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """One timed step."""

    name: str
    milliseconds: float
    ratio: float
    flop_ratio: float
    floor: float | None
    temp_mib: float
    compile_seconds: float


def build(setting: Setting) -> tuple[dict[bool, Any], PyTree, PyTree]:
    """The loss, whole and cut after half of the layers, and the parameters of a model with random weights."""
    gpt2 = setting.family == "gpt2"
    config = DecoderConfig(
        family=setting.family,
        vocab_size=setting.vocab,
        width=setting.width,
        layers=setting.layers,
        heads=setting.heads,
        kv_heads=setting.kv_heads,
        head_dim=setting.width // setting.heads,
        ffn_width=setting.ffn,
        max_length=max(setting.tokens, 64),
        tied=True,
        rope=None if gpt2 else RopeConfig(),
        activation="gelu_tanh" if gpt2 else "silu",
        qkv_bias=gpt2,
        out_bias=gpt2,
        mlp_bias=gpt2,
        dtype=setting.dtype,
        compute_dtype=setting.compute,
        remat=setting.remat,
    )
    model = Decoder(config, jax.random.key(0))
    if setting.rank:
        model = add_lora(model, LoraConfig(setting.rank, 2.0 * setting.rank, 0.0, TARGETS), jax.random.key(1))
    graphdef, params, frozen = partition(model)
    half = setting.layers // 2
    losses: dict[bool, Any] = {False: language_model_loss(graphdef, combine)}
    if half:
        cut = functools.partial(cut_layers, at=half, tied=config.tied)
        losses[True] = split_language_model_loss(graphdef, combine, cut, half)
    return losses, params, frozen


def rows(setting: Setting, count: int, seed: int) -> LanguageExample:
    """Random rows without padding, the second half of each being labels."""
    rng = np.random.default_rng(seed)
    t = setting.tokens
    return LanguageExample(
        jnp.asarray(rng.integers(0, setting.vocab, (count, t)), jnp.int32),
        jnp.ones((count, t), bool),
        jnp.broadcast_to(jnp.arange(t) >= t // 2, (count, t)),
        jnp.zeros((count, 2), jnp.uint32),
        jnp.ones((count,), bool),
    )


def naive_step(loss_fn: Callable[..., Any], optimizer: optax.GradientTransformation, setting: Setting) -> Callable:
    """GREATS with gradients laid out by vmap(grad): the step to beat in memory."""

    def step(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> tuple[TrainState, Any]:
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), candidates, validation)
        grads = reference.per_example_grads(loss_fn, state.params, frozen, both)
        gram = reference.gram(grads)
        scores, overlap = gram[: setting.n, setting.n :].mean(1), 1e-3 * gram[: setting.n, : setting.n]

        def pick(scores: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            best = jnp.argmax(scores)
            return (scores - overlap[best]).at[best].set(-jnp.inf), best

        _, chosen = jax.lax.scan(pick, scores, length=setting.keep)
        mean = jax.tree.map(lambda g: g[chosen].mean(0), grads)
        updates, opt_state = optimizer.update(mean, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1), chosen

    return jax.jit(step, donate_argnums=0)


def floor_of(setting: Setting, name: str) -> float | None:
    """Cost over the plain step on n if scoring were free (the cost model of docs/performance.md).

    The plain step is a forward pass, one backward pass to activations and one to weights (none of these for LoRA's
    base), each of one unit; rematerialisation adds a forward pass.
    """
    n, m, k = setting.n, setting.m, setting.keep
    if name not in STEPS:
        return None
    mode = STEPS[name]
    forward = 1.0 if setting.remat == "none" else 2.0
    weights = 0.0 if setting.rank else 1.0
    plain = forward + 1 + weights
    if mode.rule == "max_loss":
        return (1 + plain * k / n) / plain
    share = 0.0 if mode.rule == "grad_norm" else m / n / (setting.refresh if mode.validation == "cached" else 1)
    if mode.scoring.passes == "two":
        return ((1 + share) * (forward + 1) + plain * k / n) / plain
    if mode.upper:
        above = upper_share(setting)
        through_head = above * ((1 + share) * forward + weights * k / n)
        return (1 + share + through_head + (1 - above) * (forward + weights) * k / n) / plain
    return ((1 + share) * (forward + 1) + weights * k / n) / plain


def upper_share(setting: Setting) -> float:
    """The part of a pass that the upper half of the layers and the head cost."""
    d, kv = setting.width, setting.kv_heads / setting.heads
    layer = d * d * (2 + 2 * kv) + (2 if setting.family == "gpt2" else 3) * d * setting.ffn
    above = layer * (setting.layers - setting.layers // 2) + d * setting.vocab
    return above / (layer * setting.layers + d * setting.vocab)


def measure(setting: Setting, rounds: int) -> list[Result]:
    """Compile every step, then run them in turn `rounds` times; medians."""
    losses, params, frozen = build(setting)
    optimizer = optax.adamw(1e-3)
    candidates, validation = rows(setting, setting.n, 2), rows(setting, setting.m, 3)

    def selective(mode: Mode, keep: int) -> Callable:
        return make_selective_step(
            losses[mode.upper], optimizer, mode.rule, keep, mode.validation, setting.refresh, learning_rate=1e-3,
            is_valid=has_labels, scoring=mode.scoring,
        )  # fmt: skip

    steps: dict[str, Callable] = {
        "plain on n": selective(Mode("regular"), setting.n),
        "plain on k": selective(Mode("regular"), setting.keep),
    }
    for name in setting.steps:
        naive = name == "naive"
        steps[name] = naive_step(losses[False], optimizer, setting) if naive else selective(STEPS[name], setting.keep)

    # Steps take turns on one state, so that a large model is there once; only some need room for a direction.
    directed = {
        name: name in STEPS and (STEPS[name].validation == "cached" or STEPS[name].scoring.micro_batches > 1)
        for name in steps
    }
    states = {
        reserve: TrainState.create(params, optimizer, reserve_direction=reserve) for reserve in set(directed.values())
    }
    del params
    compiled, facts = {}, {}
    for name, step in steps.items():
        inputs = states[directed[name]], frozen, candidates, validation
        flops = matmul_flops(step, *inputs, branch_share=1 / setting.refresh)
        began = time.perf_counter()
        try:
            compiled[name] = step.lower(*inputs).compile()
        except jax.errors.JaxRuntimeError as error:
            print(f"{name}: does not compile here ({str(error).splitlines()[0][:120]})", file=sys.stderr)
            continue
        seconds = time.perf_counter() - began
        facts[name] = (flops, compiled[name].memory_analysis().temp_size_in_bytes / 2**20, seconds)
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for number in range(rounds + 1):
        for name in list(compiled):
            # A cached step is cheap in R - 1 of R calls: time a whole cycle of R.
            calls = setting.refresh if name in STEPS and STEPS[name].validation == "cached" else 1
            state = states[directed[name]]
            began = time.perf_counter()
            try:
                for _ in range(calls):
                    state, _ = compiled[name](state, frozen, candidates, validation)
                jax.block_until_ready(state)
            except jax.errors.JaxRuntimeError as error:
                print(f"{name}: does not run here ({str(error).splitlines()[0][:120]})", file=sys.stderr)
                del compiled[name], state  # its arrays were donated
                fresh = TrainState.create(build(setting)[1], optimizer, reserve_direction=directed[name])
                states[directed[name]] = fresh
                continue
            states[directed[name]] = state
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - began) / calls)
    medians = {name: statistics.median(values) for name, values in times.items() if values}
    unit, unit_flops = medians["plain on n"], facts["plain on n"][0]
    return [
        Result(name, 1e3 * value, value / unit, facts[name][0] / unit_flops, floor_of(setting, name), *facts[name][1:])
        for name, value in medians.items()
    ]


def table(results: list[Result]) -> str:
    """The results as aligned columns."""
    head = ("step", "ms", "ratio", "FLOP ratio", "floor", "temp MiB", "compile s")
    cells = [head] + [
        (
            r.name,
            f"{r.milliseconds:.1f}",
            f"{r.ratio:.3f}",
            f"{r.flop_ratio:.3f}",
            "" if r.floor is None else f"{r.floor:.3f}",
            f"{r.temp_mib:.0f}",
            f"{r.compile_seconds:.1f}",
        )
        for r in results
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join(
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )


def parse(argv: list[str]) -> tuple[str, Setting, argparse.Namespace]:
    """The preset with its overrides."""
    parser = argparse.ArgumentParser(description="Time selective steps against plain ones.")
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of every step")
    parser.add_argument("--json", type=Path, help="also write the results there")
    for field in dataclasses.fields(Setting):
        kind = str if field.name == "steps" else type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, help="comma-separated" if field.name == "steps" else None)
    args = parser.parse_args(argv)
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Setting) if getattr(args, f.name) is not None}
    if "steps" in given:
        given["steps"] = tuple(given["steps"].split(","))
        if unknown := set(given["steps"]) - set(STEPS) - {"naive"}:
            parser.error(f"unknown steps {', '.join(sorted(unknown))}; there are {', '.join([*STEPS, 'naive'])}")
    return args.preset, dataclasses.replace(PRESETS[args.preset], **given), args


def main(argv: list[str]) -> None:
    """Run one preset and print its table."""
    preset, setting, args = parse(argv)
    results = measure(setting, args.rounds)
    device = jax.devices()[0]
    print(f"{preset}: n={setting.n} m={setting.m} k={setting.keep} T={setting.tokens} d={setting.width} "
          f"layers={setting.layers} V={setting.vocab} rank={setting.rank} {setting.dtype}/{setting.compute} "
          f"R={setting.refresh}; jax {jax.__version__} on {device.device_kind}, {platform.machine()}")  # fmt: skip
    print(table(results))
    if args.json:
        facts = {
            "preset": preset,
            "setting": dataclasses.asdict(setting),
            "device": device.device_kind,
            "jax": jax.__version__,
        }
        args.json.write_text(
            json.dumps({**facts, "results": [dataclasses.asdict(r) for r in results]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
