"""Tables of scores: pieces, continuing, and refusing what is not the same table."""

import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from greats_jax.analysis.score_table import SCHEMA, score_columns, write_table
from greats_jax.errors import RunError

SETTINGS = {"method": "greats", "batch": 2, "optimizer": {"eps": 1e-8}}


def piece(number: int) -> pa.Table:
    scores = np.array([number, -number], np.float32)
    ids = [f"a-{number}", f"b-{number}"]
    return score_columns(ids, ["a", "b"], 2 * number, scores, scores / 2, np.array([1, 0]), [3, 4])


class Stopped(Exception):
    """Stands for a killed process."""


def stopping_at(last: int):
    made = []

    def make(number: int) -> pa.Table:
        if number == last:
            raise Stopped
        made.append(number)
        return piece(number)

    return make, made


def test_a_table_has_its_pieces_as_row_groups(tmp_path):
    seen = []
    write_table(tmp_path / "t.parquet", SETTINGS, 3, piece, lambda *numbers: seen.append(numbers))
    file = pq.ParquetFile(tmp_path / "t.parquet")
    assert file.num_row_groups == 3
    assert file.schema_arrow.equals(SCHEMA)
    table = file.read()
    assert table["index"].to_pylist() == list(range(6))
    assert table["id"].to_pylist()[:3] == ["a-0", "b-0", "a-1"]
    assert table["score"].to_pylist() == [0, 0, 1, -1, 2, -2]
    assert table["valid"].to_pylist() == [True, False] * 3
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]  # the pieces are gone


def test_what_is_not_a_number_becomes_null():
    table = score_columns(["x"] * 3, ["s"] * 3, 0, np.array([math.nan, math.inf, 1]), np.full(3, math.nan),
                          np.ones(3), [1, 2, 3])  # fmt: skip
    assert table["score"].to_pylist() == [None, math.inf, 1]
    assert table["loss"].null_count == 3


def test_a_stopped_table_continues_and_ends_as_the_same_file(tmp_path):
    write_table(tmp_path / "whole.parquet", SETTINGS, 4, piece)
    output = tmp_path / "t.parquet"
    with pytest.raises(Stopped):
        write_table(output, SETTINGS, 4, stopping_at(2)[0])
    assert not output.exists()
    make, made = stopping_at(-1)
    write_table(output, SETTINGS, 4, make)
    assert made == [2, 3]
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_damaged_piece_is_made_again(tmp_path):
    output = tmp_path / "t.parquet"
    with pytest.raises(Stopped):
        write_table(output, SETTINGS, 3, stopping_at(2)[0])
    first = tmp_path / "t.parquet.parts" / "000000.parquet"
    first.write_bytes(first.read_bytes()[:-20])
    make, made = stopping_at(-1)
    write_table(output, SETTINGS, 3, make)
    assert made == [0, 2]


def test_a_finished_table_is_left_as_it_is(tmp_path):
    output = tmp_path / "t.parquet"
    write_table(output, SETTINGS, 2, piece)
    make, made = stopping_at(0)
    seen = []
    write_table(output, SETTINGS, 2, make, lambda *numbers: seen.append(numbers))
    assert made == []
    assert seen == [(2, 2)]


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_and_named(tmp_path, finished):
    output = tmp_path / "t.parquet"
    if finished:
        write_table(output, SETTINGS, 2, piece)
    else:
        with pytest.raises(Stopped):
            write_table(output, SETTINGS, 2, stopping_at(1)[0])
    said = 'holds scores made with other settings (method: "greats" there, "uds" now and 1 more)'
    with pytest.raises(RunError, match=re.escape(said)):
        write_table(output, {**SETTINGS, "method": "uds", "batch": 3}, 2, piece)


def test_another_file_is_not_written_over(tmp_path):
    other = tmp_path / "t.parquet"
    other.write_text("hello")
    with pytest.raises(RunError, match="no table of scores"):
        write_table(other, SETTINGS, 1, piece)
    pq.write_table(pa.table({"x": [1]}), other)
    with pytest.raises(RunError, match="no table of scores"):
        write_table(other, SETTINGS, 1, piece)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_table(Path(tmp_path / "file" / "t.parquet"), SETTINGS, 1, piece)
