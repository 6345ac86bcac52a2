import re

import pytest

from greats_jax.cli.main import main
from greats_jax.experiments.report import as_text, build_report
from greats_jax.experiments.report.document import Examples, Folded, Report, Section, ShownExample, Table


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(runs, comparison, width):
    for folder in (runs, comparison):
        text = as_text(build_report([folder]), width)
        assert max(len(line) for line in text.splitlines()) <= width
        assert "What was selected" in text


def test_it_says_the_same_as_the_file(runs):
    report = build_report([runs])
    text = re.sub(r"\s+", " ", as_text(report, 250))
    assert re.sub(r"\s+", " ", report.verdict) in text
    tables = [block for section in report.sections for block in section.blocks if isinstance(block, Table)]
    assert len(tables) >= 4
    for table in tables:
        for row in table.rows:
            assert all(" ".join(cell.split()) in text for cell in row)


def shown(*blocks, width: int = 60) -> str:
    return as_text(Report("t", "s", "v", (), (Section("x", "X", blocks),)), width)


def test_columns_that_do_not_fit_come_below_with_the_first_again():
    head = ("method", *(f"column {i}" for i in range(9)))
    text = shown(Table(head, (("greats", *("12.34 [1, 2]" for _ in range(9))),)))
    assert text.count("greats") == 3
    assert text.count("12.34 [1, 2]") == 9


def test_what_names_a_row_is_there_again_with_its_setting():
    head = ("setting", "method", *(f"column {i}" for i in range(9)))
    rows = (("batch=4", "greats", *("12.34 [1, 2]" for _ in range(9))),)
    text = shown(Table(head, rows, left=2))
    assert text.count("batch=4  greats") == text.count("batch=4") == 3
    words = shown(Table(("key", "greats"), (("a.long.key.of.it", "some value"),), left=2), width=20)
    assert words.count("a.long.key") == 1


def test_a_text_cannot_take_over_the_terminal():
    bad = "red \x1b[31m bell \x07 back \x08 \u202e right-to-left"
    example = ShownExample(bad, bad, bad, ((bad, False), (bad, True)))
    text = shown(bad, Table(("a",), ((bad,),), caption=bad), Examples(bad, (example,)), Folded(bad, bad))
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", text)
    assert "-> red ?[31m bell ?" in text


def test_a_folded_table_is_shown_and_a_folded_text_is_not():
    assert "cell" in shown(Folded("title", Table(("head",), (("cell",),))))
    assert "a whole configuration" not in shown(Folded("title", "a whole configuration"))


def test_a_curve_is_shown_in_a_few_points(runs):
    text = as_text(build_report([runs / "greats-0"]), 100)
    section = text[text.index("Training loss (nats") : text.index("Test accuracy by")]
    assert len([line for line in section.splitlines() if re.match(r"\d", line)]) == 12


def test_the_command_prints_it(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "72")
    assert main(["inspect", str(runs / "greats-0")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("greats-0\n========\n")
    assert max(len(line) for line in text.splitlines()) <= 72
    assert "Most chosen by greats" in text
    assert main(["inspect", str(runs / "nothing")]) == 1
