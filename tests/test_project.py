"""What the project declares is what it uses: dependencies, configurations, version."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from greats_jax import __version__

MODULES = {"opt-einsum": "opt_einsum", "orbax-checkpoint": "orbax", "pyyaml": "yaml"}
EXTRAS = {"lm_eval", "matplotlib", "qwix", "rouge_score", "tensorboardX", "wandb"}
# Parts of declared packages: transformers is built on the first two, datasets on the third, jinja2 on the fourth, jax
# on the others.
CARRIED = {"huggingface_hub", "tokenizers", "pyarrow", "markupsafe", "jaxlib", "ml_dtypes"}


@pytest.fixture(scope="module")
def project(repository) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def imported(repository) -> set[str]:
    """Top-level modules of others that the package imports anywhere."""
    found = set()
    for path in (repository / "greats_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"greats_jax"}


def declared(project: dict) -> set[str]:
    names = [Requirement(text).name for text in project["dependencies"]]
    return {MODULES.get(name, name) for name in names}


def test_every_package_imported_is_declared(project, imported):
    assert imported - declared(project) - CARRIED - EXTRAS == set()


def test_every_dependency_is_used(project, imported):
    # What others use for us: transformers runs chat templates with jinja2.
    assert declared(project) - imported - {"jinja2"} == set()


def test_packages_that_only_carry_weights_are_not_listed(project):
    listed = project["dependencies"] + [text for extra in project["optional-dependencies"].values() for text in extra]
    assert not [text for text in listed if "smollm2" in text or "llama-cpp" in text]


def test_changelog_knows_the_version_or_has_unreleased_changes(repository):
    text = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in text or "## [Unreleased]" in text


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent.parent / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_configuration_of_the_project_is_valid(path):
    from greats_jax.training.config_loading import load_config
    from greats_jax.training.resolving import resolve

    config = resolve(load_config(path))
    assert config.keep is not None
    assert config.keep < config.batch
