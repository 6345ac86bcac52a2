"""README.md, CONTRIBUTING.md and .ci/run tell the same story, and what they name exists."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

LINK = re.compile(r"\]\(([^)#:]+)\)")


def blocks(path: Path, language: str) -> list[str]:
    """The contents of a document's blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def commands(path: Path) -> list[str]:
    """The single commands of a document's shell blocks: comments dropped, `&&` split."""
    lines = "".join(blocks(path, "bash")).splitlines()
    return [part.strip() for line in lines for part in line.split("#")[0].split("&&") if part.strip()]


@pytest.fixture(scope="module")
def ci_lines(repository) -> list[str]:
    return [line.strip() for line in (repository / ".ci" / "run").read_text(encoding="utf-8").splitlines()]


def test_ci_installs_and_tests_with_the_commands_of_the_readme(repository, ci_lines):
    shared = [c for c in commands(repository / "README.md") if c.startswith(("pip install", "pytest"))]
    assert len(shared) >= 4
    positions = [max(i for i, line in enumerate(ci_lines) if line == command) for command in shared]
    assert ci_lines.index(shared[0]) < ci_lines.index(shared[1])
    assert positions[-1] == max(i for i, line in enumerate(ci_lines) if line), "the tests' closing line comes last"


def test_ci_runs_the_main_job_of_the_readme(repository, ci_lines):
    job = next(c for c in commands(repository / "README.md") if c.startswith("greats train"))
    assert any(line.startswith(job + " ") for line in ci_lines)


def test_contributing_installs_like_the_readme(repository):
    ours = commands(repository / "CONTRIBUTING.md")
    assert {'pip install -e ".[dev]"', "pytest -n 2"} <= set(ours) & set(commands(repository / "README.md"))


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/getting-started.md"])
def test_files_named_in_commands_and_links_exist(repository, document):
    path = repository / document
    linked = [path.parent / link for link in LINK.findall(path.read_text(encoding="utf-8"))]
    words = [word for command in commands(path) for word in shlex.split(command)]
    named = [repository / word for word in words if word.startswith(("configs/", "scripts/", ".ci/"))]
    assert named or linked
    assert [str(p) for p in linked + named if not p.exists()] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_names_imported_in_python_examples_exist(repository, document):
    nodes = [node for block in blocks(repository / document, "python") for node in ast.walk(ast.parse(block))]
    wanted = [
        (node.module, alias.name)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    ]
    assert wanted
    assert [names for names in wanted if not hasattr(importlib.import_module(names[0]), names[1])] == []


def test_the_configuration_in_the_readme_is_valid(repository, tmp_path):
    from greats_jax.training.config_loading import load_config
    from greats_jax.training.resolving import resolve

    example, _ = blocks(repository / "README.md", "yaml")
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    resolve(load_config(tmp_path / "mine.yaml"))
    ours = [c for c in commands(repository / "README.md") if c.startswith("greats train mine.yaml")]
    assert len(ours) >= 4
    for command in ours:
        resolve(load_config(tmp_path / "mine.yaml", [word for word in shlex.split(command)[3:] if "=" in word]))


def test_the_comparison_in_the_readme_is_valid(repository, tmp_path, monkeypatch):
    from greats_jax.experiments.comparison_config import load_comparison
    from greats_jax.experiments.comparison_plan import plan_comparison

    for name, block in zip(("mine.yaml", "compare.yaml"), blocks(repository / "README.md", "yaml"), strict=True):
        (tmp_path / name).write_text(block, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    plan = plan_comparison(load_comparison("compare.yaml"))
    assert (len(plan.methods), len(plan.runs)) == (6, 30)
