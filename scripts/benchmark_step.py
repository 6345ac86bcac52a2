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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmark_settings import PRESETS, STEPS, Mode, Setting, floor_of

from greats_jax.ghost import reference
from greats_jax.models import Decoder, DecoderConfig, LoraConfig, RopeConfig, add_lora, combine, cut_layers, partition
from greats_jax.selection import get
from greats_jax.training import (
    LanguageExample,
    TrainState,
    has_labels,
    language_model_loss,
    make_selective_step,
    split_language_model_loss,
)
from greats_jax.training.costs import matmul_flops
from greats_jax.training.losses import summarised_language_model_loss

PyTree = Any
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


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


def build(setting: Setting) -> tuple[dict[str, Any], PyTree, PyTree]:
    """The loss (whole, with summaries, and cut after half of the layers) and a model's parameters, drawn at random."""
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
    losses: dict[str, Any] = {
        "whole": language_model_loss(graphdef, combine),
        "summaries": summarised_language_model_loss(graphdef, combine),
    }
    if half:
        cut = functools.partial(cut_layers, at=half, tied=config.tied)
        losses["upper"] = split_language_model_loss(graphdef, combine, cut, half)
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


def naive_greats(grads: PyTree, setting: Setting) -> jax.Array:
    """The choice of GREATS from gradients of candidates and validation rows."""
    gram = reference.gram(grads)
    scores, overlap = gram[: setting.n, setting.n :].mean(1), 1e-3 * gram[: setting.n, : setting.n]

    def pick(scores: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        best = jnp.argmax(scores)
        return (scores - overlap[best]).at[best].set(-jnp.inf), best

    return jax.lax.scan(pick, scores, length=setting.keep)[1]


def naive_grad_norm(grads: PyTree, setting: Setting) -> jax.Array:
    """The choice of the longest gradients from gradients of candidates."""
    squares = sum(jnp.square(g.astype(jnp.float32)).reshape(setting.n, -1).sum(1) for g in jax.tree.leaves(grads))
    return jax.lax.top_k(squares, setting.keep)[1]


NAIVE = {"naive": (naive_greats, True), "naive-grad-norm": (naive_grad_norm, False)}
"""Rules on gradients laid out by vmap(grad), the steps to beat in memory, and whether they look at validation rows."""


def naive_step(
    name: str, loss_fn: Callable[..., Any], optimizer: optax.GradientTransformation, setting: Setting
) -> Callable:
    """A step of `NAIVE`."""
    choose, guided = NAIVE[name]

    def step(state: TrainState, frozen: PyTree, candidates: PyTree, validation: PyTree) -> tuple[TrainState, Any]:
        rows = candidates
        if guided:
            rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), candidates, validation)
        grads = reference.per_example_grads(loss_fn, state.params, frozen, rows)
        chosen = choose(grads, setting)
        mean = jax.tree.map(lambda g: g[chosen].mean(0), grads)
        updates, opt_state = optimizer.update(mean, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, opt_state=opt_state, step=state.step + 1), chosen

    return jax.jit(step, donate_argnums=0)


def state_kind(name: str) -> tuple[bool, str | None]:
    """Whether a step keeps a direction in its state, and the rule whose memory it keeps."""
    if name not in STEPS:
        return False, None
    mode = STEPS[name]
    reserve = mode.validation == "cached" or mode.scoring.micro_batches > 1
    return reserve, mode.rule if get(mode.rule).init else None


def new_state(params: PyTree, optimizer: optax.GradientTransformation, kind: tuple[bool, str | None]) -> TrainState:
    """A state of that kind."""
    reserve, rule = kind
    init = None if rule is None else get(rule).init
    memory = None if init is None else init()
    return TrainState.create(params, optimizer, reserve_direction=reserve, memory=memory)


def measure(setting: Setting, rounds: int) -> list[Result]:
    """Compile every step, then run them in turn `rounds` times; medians."""
    losses, params, frozen = build(setting)
    optimizer = optax.adamw(1e-3)
    candidates, validation = rows(setting, setting.n, 2), rows(setting, setting.m, 3)

    def selective(mode: Mode, keep: int) -> Callable:
        kind = "upper" if mode.upper else "summaries" if mode.summaries else "whole"
        return make_selective_step(
            losses[kind], optimizer, mode.rule, keep, mode.validation, setting.refresh, learning_rate=1e-3,
            is_valid=has_labels, has_aux=mode.summaries, scoring=mode.scoring,
        )  # fmt: skip

    steps: dict[str, Callable] = {
        "plain on n": selective(Mode("regular"), setting.n),
        "plain on k": selective(Mode("regular"), setting.keep),
    }
    for name in setting.steps:
        direct = name in NAIVE
        steps[name] = (
            naive_step(name, losses["whole"], optimizer, setting) if direct else selective(STEPS[name], setting.keep)
        )

    # Steps take turns on one state, so that a large model is there once; only some need room for a direction or memory.
    kinds = {name: state_kind(name) for name in steps}
    states = {kind: new_state(params, optimizer, kind) for kind in set(kinds.values())}
    del params
    compiled, facts = {}, {}
    for name, step in steps.items():
        inputs = states[kinds[name]], frozen, candidates, validation
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
            state = states[kinds[name]]
            began = time.perf_counter()
            try:
                for _ in range(calls):
                    state, _ = compiled[name](state, frozen, candidates, validation)
                jax.block_until_ready(state)
            except jax.errors.JaxRuntimeError as error:
                print(f"{name}: does not run here ({str(error).splitlines()[0][:120]})", file=sys.stderr)
                del compiled[name], state  # its arrays were donated
                states[kinds[name]] = new_state(build(setting)[1], optimizer, kinds[name])
                continue
            states[kinds[name]] = state
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
        if unknown := set(given["steps"]) - set(STEPS) - set(NAIVE):
            parser.error(f"unknown steps {', '.join(sorted(unknown))}; there are {', '.join([*STEPS, *NAIVE])}")
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
