"""The paper's configurations are sound, each has a small twin, and the page says how each was made."""

import pytest

from greats_jax.experiments.comparison_config import all_methods, load_comparison
from greats_jax.experiments.comparison_plan import plan_comparison
from greats_jax.tasks.mmlu import SUBJECTS


@pytest.fixture
def at_home(repository, monkeypatch):
    monkeypatch.chdir(repository)
    return repository


@pytest.fixture(scope="module")
def paper(load_program):
    return load_program("scripts/paper_small.py")


def names(repository):
    return sorted(path.stem for path in (repository / "configs" / "paper").glob("*.yaml"))


def test_every_experiment_has_a_small_twin_and_a_line_in_the_docs(at_home, paper):
    large = [name for name in names(at_home) if not name.endswith("-small")]
    assert names(at_home) == sorted([*large, *(f"{name}-small" for name in large)])
    page = (at_home / "docs" / "paper.md").read_text()
    for name in large:
        assert f"configs/paper/{name}.yaml" in page
        assert name in paper.TWINS


@pytest.mark.parametrize("name", ["pretraining", "mmlu-small", "tydiqa-small", "samsum-small", "pretraining-small",
                                  "validation-size", "validation-size-small", "tydiqa", "samsum"])  # fmt: skip
def test_every_run_of_an_experiment_can_be_configured(at_home, name):
    config = load_comparison(f"configs/paper/{name}.yaml")
    plan = plan_comparison(config)
    assert len(plan.runs) == len(all_methods(config)) * len(config.seeds) * len(config.vary)
    assert len(config.seeds) >= 5


def test_the_experiment_on_mmlu_has_every_subject(at_home):
    settings = [dict(value.settings)[("task", "subject")] for value in load_comparison("configs/paper/mmlu.yaml").vary]
    assert settings == list(SUBJECTS)


def test_the_page_shows_what_has_been_made(paper, tmp_path, monkeypatch):
    for name, place in ("RUNS", "runs"), ("IMAGES", "docs/images"), ("PAGE", "docs/page.md"):
        monkeypatch.setattr(paper, name, tmp_path / place)
    monkeypatch.setattr(paper, "TWINS", {
        "one": paper.Twin("One", "-m greats_jax compare one.yaml", {"report_files/a.png": "a curve"}),
        "two": paper.Twin("Two", "two.py", {}, compared=False),
        "three": paper.Twin("Three", "three.py", {}, compared=False),
    })  # fmt: skip
    (tmp_path / "runs" / "one" / "report_files").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "report_files" / "a.png").write_bytes(b"png")
    (tmp_path / "runs" / "one" / "summary.md").write_text("# Comparison one\n\nIt pays.\n\n## setting\n\n| a |\n")
    (tmp_path / "runs" / "one.txt").write_text("2026-01-02\nprinted\n")
    (tmp_path / "runs" / "two.txt").write_text("2026-01-03\n1 | 2\n")
    page = paper.page()
    assert "greats compare one.yaml" in page
    assert "Made on 2026-01-02." in page
    assert "![a curve](images/one-a.png)" in page
    assert (tmp_path / "docs" / "images" / "one-a.png").read_bytes() == b"png"
    assert "It pays." in page
    assert "### setting" in page
    assert "1 | 2" in page
    assert "Three" not in page
