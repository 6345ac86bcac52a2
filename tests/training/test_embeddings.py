import concurrent.futures
import os
from pathlib import Path

import numpy as np
import pytest

from greats_jax.errors import RunError
from greats_jax.training import embeddings
from greats_jax.training.embeddings import default_cache, embed


class Counting:
    """An encoder that counts the letters a to e, and remembers what it was asked."""

    def __init__(self, fingerprint="one"):
        self.fingerprint = fingerprint
        self.asked = []

    def encode(self, texts):
        self.asked += texts
        return np.array([[text.count(letter) for letter in "abcde"] for text in texts], np.float32).reshape(-1, 5)


TEXTS = ["abba", "cab", "", "deed", "cab", "ÿ\ud800"]  # one twice, one empty, one that is no valid Unicode


def test_rows_come_in_order_and_each_text_is_encoded_once():
    encoder = Counting()
    np.testing.assert_array_equal(embed(encoder, TEXTS), Counting().encode(TEXTS))
    assert sorted(encoder.asked) == sorted(set(TEXTS))


def test_what_is_cached_is_not_encoded_again(tmp_path):
    first = embed(Counting(), TEXTS, tmp_path)
    again = Counting()
    np.testing.assert_array_equal(embed(again, TEXTS[::-1], tmp_path), first[::-1])
    assert again.asked == []


def test_only_a_changed_text_is_encoded(tmp_path):
    embed(Counting(), TEXTS, tmp_path)
    again = Counting()
    changed = [*TEXTS[:3], "bead", *TEXTS[4:]]
    np.testing.assert_array_equal(embed(again, changed, tmp_path), Counting().encode(changed))
    assert again.asked == ["bead"]


def test_another_encoder_finds_nothing(tmp_path):
    embed(Counting(), TEXTS, tmp_path)
    other = Counting("another")
    embed(other, TEXTS, tmp_path)
    assert len(other.asked) == len(set(TEXTS))


def test_no_texts_give_no_rows(tmp_path):
    assert embed(Counting(), [], tmp_path).shape == (0, 5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_truncated_file_is_computed_again_and_mended(tmp_path, left):
    embed(Counting(), ["abba"], tmp_path)
    embed(Counting(), ["abba", "cab"], tmp_path)
    damaged = max(tmp_path.rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    os.truncate(damaged, left % damaged.stat().st_size)
    again, once_more = Counting(), Counting()
    np.testing.assert_array_equal(embed(again, ["abba", "cab"], tmp_path), Counting().encode(["abba", "cab"]))
    assert again.asked == ["cab"]
    embed(once_more, ["abba", "cab"], tmp_path)
    assert once_more.asked == []


def test_a_killed_run_keeps_what_it_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "_TEXTS_PER_FILE", 2)

    class Dying(Counting):
        def encode(self, texts):
            if self.asked:
                raise KeyboardInterrupt
            return super().encode(texts)

    with pytest.raises(KeyboardInterrupt):
        embed(Dying(), TEXTS, tmp_path)
    again = Counting()
    embed(again, TEXTS, tmp_path)
    assert again.asked == list(dict.fromkeys(TEXTS))[2:]


def test_runs_at_the_same_time_share_a_cache(tmp_path):
    texts = [f"{letter}{number}" for letter in "abcde" for number in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: embed(Counting(), texts, tmp_path), range(8)))
    for result in results:
        np.testing.assert_array_equal(result, Counting().encode(texts))
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".safetensors"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match=r"file.*cannot be kept here.*XDG_CACHE_HOME"):
        embed(Counting(), TEXTS, tmp_path / "file")


@pytest.mark.parametrize(("value", "root"), [("/somewhere", "/somewhere"), ("", "~/.cache"), ("relative", "~/.cache")])
def test_the_default_cache_is_where_the_desktop_says(monkeypatch, value, root):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert default_cache() == Path(root).expanduser() / "greats-jax" / "embeddings"
