"""What a step costs each device, by size and mesh: tables in Markdown, from compiled programs that are never run.

Weights and batches are shapes alone; devices are simulated. Everything is in float32, because the CPU's compiler
computes bfloat16 in it: halve what is said of weights and activations where they are bfloat16.

    python scripts/measure_scaling.py small        # one size at a time, on 8 devices
    python scripts/measure_scaling.py large        # 8B and 70B, to 512 devices: about ten minutes
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any, Literal, NamedTuple

import jax

from greats_jax.analysis.collectives import bytes_received
from greats_jax.analysis.compiled_program import matmul_flops
from greats_jax.data import DataConfig, SourceConfig
from greats_jax.models import DecoderConfig, LoraConfig
from greats_jax.tasks import TaskConfig
from greats_jax.training.abstract_run import abstract_model, abstract_run
from greats_jax.training.config import MeshConfig, ModelConfig, ScoringConfig, TrainConfig, ValidationConfig
from greats_jax.training.mesh import make_mesh, place_decoder
from greats_jax.training.resolving import resolve

LLAMA = {"family": "llama", "vocab_size": 32000, "max_length": 8192}
SHAPES = {
    "8B": {**LLAMA, "width": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn_width": 14336},
    "70B": {**LLAMA, "width": 8192, "layers": 80, "heads": 64, "kv_heads": 8, "head_dim": 128, "ffn_width": 28672},
}


class Case(NamedTuple):
    """One step.

    Attributes:
        name: Of the model.
        shape: Of the model.
        mesh: Sizes of data, fsdp and tensor.
        rows: Candidates, half of which are kept.
        tokens: Of a row.
        rank: Of the adapters of all linear maps; None trains every parameter.
        passes: Of the scoring.
        validation: Validation rows.
        quantize: Of the frozen linear maps.
        scope: Of the choice.
    """

    name: str
    shape: dict[str, Any]
    mesh: tuple[int, int, int]
    rows: int
    tokens: int
    rank: int | None = 16
    passes: Literal["one", "two"] = "one"
    validation: int = 8
    quantize: Literal["nf4"] | None = None
    scope: Literal["global", "per_device"] = "global"


class Cost(NamedTuple):
    """Of one device in one step: FLOPs, bytes kept between steps, bytes within a step, bytes received by kind.

    And the seconds that compiling took.
    """

    flops: float
    kept: int
    temporary: int
    received: dict[str, int]
    seconds: float


def measure(case: Case) -> Cost:
    """Compile the step of a case for simulated devices and read what it costs."""
    shape = DecoderConfig(**case.shape, remat="full")
    config = resolve(_config(case))
    data, fsdp, tensor = case.mesh
    count = data * fsdp * tensor
    mesh = make_mesh(config.mesh, jax.devices()[:count])
    model = abstract_model(config, shape, mesh if count > 1 else None)
    placement = (lambda state, frozen: place_decoder(mesh, shape, state, frozen)) if count > 1 else None
    run = abstract_run(config, model, placement)
    started = time.perf_counter()
    compiled = run.step.lower(*run.arguments).compile()
    seconds = time.perf_counter() - started
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    return Cost(
        matmul_flops(text),
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        dict(bytes_received(text)),
        seconds,
    )


def _config(case: Case) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(case.name, remat="full", quantize=case.quantize),
        data=DataConfig(sources=(SourceConfig("pool"),), max_length=case.tokens),
        task=TaskConfig(n_validation=case.validation),
        lora=None if case.rank is None else LoraConfig(rank=case.rank, targets=("all-linear",)),
        batch=case.rows,
        steps=1,
        validation=ValidationConfig(per_step=case.validation),
        scoring=ScoringConfig(passes=case.passes, scope=case.scope),
        mesh=MeshConfig(*case.mesh),
    )


def small() -> list[tuple[str, Case]]:
    """One size at a time."""

    def shape(width: int) -> dict[str, Any]:
        heads = width // 64
        return {
            **LLAMA, "vocab_size": 8192, "width": width, "layers": 8, "heads": heads, "kv_heads": heads,
            "head_dim": 64, "ffn_width": 4 * width,
        }  # fmt: skip

    base = Case("small", shape(512), (8, 1, 1), 32, 256)
    changed = [("base: n=32, T=256, d=512, 8 devices", base)]
    changed += [(f"n={n}", base._replace(rows=n)) for n in (16, 64)]
    changed += [(f"T={tokens}", base._replace(tokens=tokens)) for tokens in (128, 512)]
    changed += [(f"d={width}", base._replace(shape=shape(width))) for width in (256, 1024)]
    changed += [(f"{count} device{'s' * (count > 1)}", base._replace(mesh=(count, 1, 1))) for count in (1, 2, 4)]
    changed += [("fsdp 8", base._replace(mesh=(1, 8, 1))), ("tensor 8", base._replace(mesh=(1, 1, 8)))]
    changed += [("each device for itself", base._replace(scope="per_device"))]
    changed += [("two passes", base._replace(passes="two"))]
    changed += [("all parameters, two passes", base._replace(rank=None, passes="two"))]
    return changed


def large() -> list[tuple[str, Case]]:
    """Models that need a mesh: two candidates and one validation row to each group of devices that shares rows."""
    meshes = {"8B": [(1, 8, 1), (8, 8, 1), (1, 8, 8)], "70B": [(1, 64, 1), (1, 8, 8), (8, 8, 8), (1, 64, 8)]}
    cases = []
    for model, (data, fsdp, tensor) in ((model, mesh) for model, some in meshes.items() for mesh in some):
        parts = data * fsdp
        lora = Case(model, SHAPES[model], (data, fsdp, tensor), 2 * parts, 512, validation=parts)
        cases.append((f"{model}, LoRA, one pass", lora))
        if data == tensor == 1:
            cases.append((f"{model}, LoRA on nf4, one pass", lora._replace(quantize="nf4")))
        cases.append((f"{model}, all parameters, two passes", lora._replace(rank=None, passes="two")))
    return cases


KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
UNITS = {"small": ("GFLOP", 1e9, "MiB", 2**20), "large": ("TFLOP", 1e12, "GiB", 2**30)}


def line(name: str, case: Case, cost: Cost, flops: float, size: int) -> str:
    """A row of the table, in multiples of `flops` and of `size` bytes."""
    mesh = " x ".join(str(size) for size in case.mesh)
    sizes = (cost.kept, cost.temporary, *(cost.received.get(kind, 0) for kind in KINDS))
    cells = [name, mesh, str(case.rows), f"{cost.flops / flops:.3g}", *(f"{x / size:.3g}" for x in sizes)]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("small", "large"))
    parser.add_argument("--only", default="", help="lines whose name and mesh contain this")
    given = parser.parse_args()
    cases = small() if given.table == "small" else large()
    jax.config.update("jax_num_cpu_devices", max(a * b * c for _, case in cases for a, b, c in [case.mesh]))
    flops_name, flops, size_name, size = UNITS[given.table]
    sizes = (f"{column} {size_name}" for column in ("kept", "temporary", *KINDS))
    head = ("step", "data x fsdp x tensor", "n", flops_name, *sizes)
    print("| " + " | ".join(head) + " |\n|---|---|" + "--:|" * (len(head) - 2))
    for name, case in cases:
        if given.only in f"{name} {case.mesh}":
            cost = measure(case)
            print(line(name, case, cost, flops, size), flush=True)
            print(f"{name}: compiled in {cost.seconds:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
