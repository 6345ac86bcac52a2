"""What `benchmark_step.py` times: models and batches, the steps on them, and the floor of each step's cost."""

import dataclasses
from typing import Literal, NamedTuple

from greats_jax.training import Projection, Scoring

RANK = 1024  # of projected features


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
    "signals": Setting(
        rank=8, steps=("random-k", "max-loss", "uds", "first", "adam", "greats", "layer-wise", "adam-cached")
    ),
    "compile": Setting(256, 24, 688, 4, 4, 1024, 8, 1, 4, 64, steps=("greats", "first", "two-pass")),
    "gpt2": Setting(
        768, 12, 3072, 12, 12, 50304, 16, 1, 8, 512, family="gpt2",
        steps=("greats", "first", "first-cached", "projected", "upper", "naive"),
    ),
    "smollm2": Setting(576, 30, 1536, 9, 3, 49152, 16, 1, 8, 512, 16, ("greats", "first", "greats-cached", "naive")),
    # The throughput table of the GREATS paper (Llama-2-7B, adapters of rank 128), and its small twin.
    "paper": Setting(
        4096, 32, 11008, 32, 32, 32000, 4, 2, 2, 512, 128, ("greats", "grad-norm", "naive", "naive-grad-norm"),
        dtype="bfloat16", compute="bfloat16",
    ),
    "paper-small": Setting(rank=16, m=2, steps=("greats", "grad-norm", "naive", "naive-grad-norm")),
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
    """A selective step: its rule, how validation enters, how scores are computed, and which loss it takes.

    Attributes:
        rule: A selection rule.
        validation: How validation rows enter.
        scoring: How scores are computed.
        upper: Whether the loss is cut after half of the layers.
        summaries: Whether the loss also looks at the logits.
    """

    rule: str = "greats"
    validation: Literal["merged", "cached"] = "merged"
    scoring: Scoring = Scoring()
    upper: bool = False
    summaries: bool = False


STEPS = {
    "greats": Mode(),
    "first": Mode("greats_first_order"),
    "greats-cached": Mode(validation="cached"),
    "first-cached": Mode("greats_first_order", "cached"),
    "grad-norm": Mode("grad_norm"),
    "random-k": Mode("random_k"),
    "max-loss": Mode("max_loss"),
    "uds": Mode("uds", summaries=True),
    "adam": Mode("greats_adam"),
    "adam-cached": Mode("greats_adam", "cached"),
    "layer-wise": Mode("layer_wise"),
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
    if mode.rule == "random_k":
        return k / n
    if mode.rule in ("max_loss", "uds"):
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
