"""`greats export`."""

import shutil
from pathlib import Path

from greats_jax.errors import RunError
from greats_jax.training.chosen import chosen_records
from greats_jax.training.jsonl import JsonLines
from greats_jax.training.result import RunResult
from greats_jax.training.setup import load_data, load_trained, tokenizer_of
from greats_jax.training.step import TARGET_ONLY


def export(folder: str, what: str, to: str) -> int:
    """Copy the adapter, the merged model or the chosen examples of a finished run to a new place."""
    run = RunResult.load(folder)
    target = Path(to)
    if target.exists():
        raise RunError(f"{target}: exists already; name another place, nothing is written over")
    if what == "adapter":
        _export_adapter(run, target)
    elif what == "merged":
        _export_merged(run, target)
    else:
        _export_chosen(run, target)
    return 0


def _export_adapter(run: RunResult, target: Path) -> None:
    if run.config.lora is None:
        raise RunError(f"{run.folder}: this run trained every parameter and has no adapter; export merged instead")
    shutil.copytree(run.weights, target)
    print(f"adapter of {run.config.model.source} written to {target}")


def _export_merged(run: RunResult, target: Path) -> None:
    from greats_jax.models import merge_lora, save_pretrained

    model, tokenizer = load_trained(run)
    if run.config.lora is not None:
        model = merge_lora(model)
    save_pretrained(model, target)
    tokenizer.save_pretrained(target)
    print(f"model written to {target}; transformers and greats load it from there")


def _export_chosen(run: RunResult, target: Path) -> None:
    if run.config.method == TARGET_ONLY:
        raise RunError(f"{run.folder}: this run learned from the validation examples and chose none of the pool")
    records = chosen_records(run.selections, load_data(run.config, tokenizer_of(run.config.model)).pool)
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = JsonLines(target)
    for record in records:
        lines.write(record)
    lines.close()
    print(f"{len(records)} chosen examples written to {target}")
