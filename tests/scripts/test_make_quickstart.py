"""The quickstart pool is what its generator writes, correct where it should be and wrong where it says so."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

RECORD = re.compile(r"qty=(\d+); item=(\w+) (\w+); to=(\w+); by=(\w{3})")


@pytest.fixture(scope="module")
def script(load_program) -> ModuleType:
    return load_program("scripts/make_quickstart.py")


@pytest.fixture(scope="module")
def pool(repository: Path) -> dict[str, list[tuple[str, str]]]:
    """Prompts and answers of every file, by its name."""
    files = {}
    for path in sorted((repository / "configs" / "quickstart").glob("*.jsonl")):
        rows = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
        assert all([m["role"] for m in row] == ["user", "assistant"] for row in rows)
        files[path.stem] = [(row[0]["content"], row[1]["content"]) for row in rows]
    return files


def test_the_committed_files_are_what_the_generator_writes(script, repository, tmp_path):
    script.main(tmp_path)
    committed = {p.name: p.read_text(encoding="utf-8") for p in (repository / "configs/quickstart").glob("*.jsonl")}
    assert {p.name: p.read_text(encoding="utf-8") for p in tmp_path.iterdir()} == committed


def test_no_prompt_occurs_twice_so_validation_and_test_are_disjoint_from_the_pool(pool):
    prompts = [prompt for rows in pool.values() for prompt, _ in rows]
    assert len(prompts) == len(set(prompts))


def test_target_share_of_the_pool_is_about_a_sixth(pool):
    sizes = {name: len(rows) for name, rows in pool.items() if not name.startswith("target_")}
    assert sizes["orders"] / sum(sizes.values()) == pytest.approx(0.172, abs=0.005)


@pytest.mark.parametrize("name", ["orders", "target_validation", "target_test"])
def test_records_say_what_the_order_says(script, pool, name):
    for prompt, answer in pool[name]:
        match = RECORD.fullmatch(answer)
        assert match, answer
        quantity, look, item, city, day = match.groups()
        number = script.NUMBERS[int(quantity) - 1]
        things = item if quantity == "1" else script.plural(item)
        assert f"{number} {look} {things}" in prompt.lower()
        assert city in prompt
        assert any(full.startswith(day) and full in prompt for full in script.DAYS)


def test_arithmetic_is_right(pool):
    for prompt, answer in pool["arithmetic"]:
        a, b = map(int, re.findall(r"\d+", prompt))
        expected = a * b if "boxes" in prompt else a - b if "gave away" in prompt else a + b
        assert re.findall(r"\d+", answer) == [str(expected)]


def test_sorting_and_sentiment_are_right(script, pool):
    for prompt, answer in pool["sorting"]:
        assert answer.split(", ") == sorted(prompt.split(": ")[1].split(", "))
    for prompt, answer in pool["sentiment"]:
        assert (answer == "Positive.") == any(praise in prompt for praise in script.PRAISE)
        assert (answer == "Negative.") == any(blame in prompt for blame in script.BLAME)


def test_corrupted_sources_are_wrong(script, pool):
    truth = {}
    for name, make in script.SKILLS.items():
        stream = script.unique(make(script.random.Random(f"{script.SEED}-{name}")))
        truth |= {example.prompt: example.answer for example in script.take(stream, 97)}
    truth |= {
        e.prompt: e.answer for e in script.take(script.orders(script.random.Random(f"{script.SEED}-orders")), 150)
    }
    corrupted = pool["swapped"] + pool["garbled"]
    assert all(truth[prompt] != answer for prompt, answer in corrupted)
    right = {word for rows in (pool["facts"], pool["opposites"]) for _, answer in rows for word in answer.split()}
    garbled_words = [word for _, answer in pool["garbled"] for word in answer.split() if len(word) > 4]
    assert sum(word in right for word in garbled_words) < 0.05 * len(garbled_words)


@pytest.mark.weights
@pytest.mark.slow
def test_no_example_of_the_quickstart_is_cut(repository, monkeypatch):
    from greats_jax.data import build_pool
    from greats_jax.models import load_tokenizer
    from greats_jax.tasks import load_task
    from greats_jax.training.config_loading import load_config

    monkeypatch.chdir(repository)
    config = load_config("configs/quickstart.yaml")
    tokenizer = load_tokenizer(config.model.source)
    pool = build_pool(config.data, tokenizer)
    task = load_task(config.task, tokenizer, config.data, pool, config.seed)
    assert len(task.pool) == 725
    assert sum(counts["truncated"] for counts in pool.counts.values()) == 0
    assert (len(task.validation), len(task.test)) == (8, 40)
