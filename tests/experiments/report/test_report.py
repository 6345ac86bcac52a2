"""The report as a file: whole, harmless, and true to the records."""

import builtins
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from tiny import FinishedRun

from greats_jax.cli.main import main
from greats_jax.errors import RunError
from greats_jax.experiments.report import build_report, write_report, writing
from greats_jax.experiments.report.document import (
    Chart,
    Charts,
    Examples,
    Fact,
    Folded,
    Heading,
    Key,
    Report,
    Section,
    ShownExample,
    Table,
    charts_of,
)
from greats_jax.experiments.report.page import page
from greats_jax.experiments.report.pictures import svg
from greats_jax.experiments.report.styles import IN_THE_DARK, INK, STYLES, styles_of_methods

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\" ' {{ 7*7 }} {% raw %} </style></title> &amp; `<b>`"


class Elements(HTMLParser):
    """Every element with its attributes, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="session")
def html(written) -> str:
    return written.html.read_text(encoding="utf-8")


def test_the_file_needs_nothing_outside_itself(html):
    found = Elements(html)
    assert found.open == []  # every element is closed
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in found.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            if (value := attributes.get(name)) is not None:
                assert value.startswith("#")
                assert value[1:] in ids
    for target in re.findall(r"url\(([^)]*)\)", html):
        assert target.startswith("#")
        assert target[1:] in ids
    assert "@import" not in html
    assert "http:" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    policy = next(a["content"] for a in found.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_every_picture_is_described_and_has_its_numbers(html, runs):
    found = Elements(html)
    charts = charts_of(build_report([runs]))
    pictures = [a for a in found.named("svg") if a.get("role") == "img"]
    assert len(pictures) == len(charts) >= 8
    for chart in charts:
        assert chart.table.rows
        assert chart.says in found.text
    assert len(found.named("desc")) == len(charts)
    assert len(found.named("details")) >= len(charts)
    assert len({chart.name for chart in charts}) == len(charts)


def test_pictures_take_their_colours_from_the_page(html):
    drawn = "".join(re.findall(r'<svg viewBox="[^"]*" role="img".*?</svg>', html, re.DOTALL))
    assert not re.findall(r"#[0-9a-fA-F]{6}", drawn)
    assert {"var(--s1)", "var(--ink)", "var(--grid)"} <= set(re.findall(r"var\(--\w+\)", drawn))
    assert html.count(f"--ink: {INK}") == 1
    assert html.count(f"--ink: {IN_THE_DARK[INK]}") == 1
    assert "<text" in drawn  # text stays text
    assert "font-family" not in drawn


def test_the_pictures_are_also_files(written):
    assert written.missing == ""
    assert written.pngs
    assert written.pngs[0].parent == written.html.with_name("all_files")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written.pngs)


def test_it_says_what_the_records_say(html, runs):
    text = Elements(html).text
    assert "Test accuracy, greats" in text
    for section in ("Curves", "Methods", "What was selected", "Examples", "Time and memory", "Settings", "Versions"):
        assert section in text
    assert "greats pays" in text  # it falls twice as fast, in every seed
    assert "Most chosen by greats" in text
    assert "3 GiB" in text
    assert "1 × cpu" in text
    first = json.loads((runs / "greats-0" / "metrics.jsonl").read_text().splitlines()[0])
    assert f"{first['test_perplexity']:.1f}" in text


def test_most_chosen_are_those_of_the_source_that_was_preferred(runs):
    report = build_report([runs])
    (section,) = (section for section in report.sections if section.slug == "examples")
    most, least = (block for block in section.blocks if isinstance(block, Examples))
    assert {one.source for one in most.examples} == {"copy"}
    assert {one.source for one in least.examples} == {"noise"}
    one = most.examples[0]
    assert [learned for _, learned in one.parts] == [False, True]
    assert re.match(r"chosen \d+ of \d+ times \(\d+ %\), mean score [\d.]+, mean loss [\d.]+", one.facts)


def test_shares_of_the_time_add_up(runs):
    report = build_report([runs / "greats-0"])
    chart = next(chart for chart in charts_of(report) if chart.name == "time-whole")
    assert chart.table.head[1:] == (
        "waiting for data", "scoring", "selection", "update", "evaluation", "compiling",
    )  # fmt: skip
    cells = dict(zip(chart.table.head, chart.table.rows[0], strict=True))
    # Twelve updates of half a second, of which the first had no known share of selecting; four evaluations.
    assert cells["waiting for data"].startswith("600 ms")
    assert cells["evaluation"].startswith("1 s")
    assert cells["compiling"].startswith("3 s")
    assert sum(int(share) for share in re.findall(r"\((\d+) %", " ".join(cells.values()))) in range(97, 104)


def test_what_it_quotes_cannot_do_anything():
    table = Table((HOSTILE, HOSTILE), ((HOSTILE, HOSTILE), ("x", f"1 [{HOSTILE}]")), caption=HOSTILE)
    chart = Chart("name", HOSTILE, HOSTILE, lambda axes: axes.set_title(HOSTILE), table, (Key(HOSTILE, 1),))
    blocks = (
        HOSTILE, Heading(HOSTILE), table, Charts((chart,)), Charts((chart._replace(name="other"),), chart.keys),
        Examples(HOSTILE, (ShownExample(HOSTILE, HOSTILE, HOSTILE, ((HOSTILE, False), (HOSTILE, True))),)),
        Folded(HOSTILE, HOSTILE), Folded(HOSTILE, table),
    )  # fmt: skip
    text = page(
        Report(HOSTILE, HOSTILE, HOSTILE, (Fact(HOSTILE, HOSTILE, HOSTILE),), (Section("s", HOSTILE, blocks),)), "today"
    )
    found = Elements(text)
    assert not [tag for tag, _ in found.elements if tag in ("script", "img", "b")]
    assert len(found.named("title")) == 3  # the page's, and one for each picture
    assert found.text.count("alert(1)") >= 14
    assert "{{ 7*7 }}" in found.text
    assert "49" not in found.text


def leads(verdict: str) -> list[str]:
    text = page(Report("t", "s", verdict, (), ()), "today")
    return re.findall(r'<p class="lead[^"]*">(.*?)</p>', text)


def test_the_first_sentence_of_a_verdict_stands_out():
    assert leads("It pays. Much.") == ["It pays."]
    assert leads("greats brought it from 2.5 to 1.2 in 3 updates.") == [
        "greats brought it from 2.5 to 1.2 in 3 updates."
    ]
    assert leads("Of greats, opus, opus did best. opus pays: 0.5 lower. 5 seeds.") == [
        "Of greats, opus, opus did best. opus pays: 0.5 lower."
    ]
    assert leads("With a=1: It pays. Much.\n\nWith a=2: It does not.") == [
        "With a=1: It pays.",
        "With a=2: It does not.",
    ]
    assert leads("No end") == ["No end"]


def test_hostile_records_stay_text(make_run, tmp_path):
    names = [f"copy-<script>{i}</script>" for i in range(8)] + [f"<img src=x>-{i}" for i in range(8)]
    run = make_run(tmp_path / "run", "method=greats", "keep=3", names=names)
    found = Elements(page(build_report([run.folder]), "today"))
    assert not found.named("script")
    assert not found.named("img")
    assert "<script>0</script>" in found.text
    assert "<img src=x>" in found.text


def test_a_real_run_has_a_report_without_comparison(finished_run: FinishedRun):
    report = build_report([finished_run.result.folder])
    assert report.verdict.startswith("greats brought the test perplexity ")
    assert "Whether selection pays here is not known" in report.verdict
    slugs = [section.slug for section in report.sections]
    assert slugs == ["curves", "selected", "examples", "costs", "settings", "versions"]
    assert "training-loss" in [chart.name for chart in charts_of(report)]
    assert "Training loss (nats per token)" in page(report, "today")


def test_a_comparison_with_a_changing_setting(comparison):
    report = build_report([comparison])
    assert report.sections[0].title == "Notes"
    names = [chart.name for chart in charts_of(report)]
    assert "settings" in names
    for place, setting in enumerate(("keep=2", "keep=3")):
        own = {chart.name.rpartition("-")[0] for chart in charts_of(report) if chart.of == setting}
        assert {"test_loss-steps", "test_loss-seconds", "validation_loss-steps", "test_accuracy-steps"} <= own
        assert {f"{name}-{place}" for name in own} <= set(names)
    assert {"against-random_k-0", "against-random_k-1"} <= set(names)
    last = next(chart for chart in charts_of(report) if chart.name == "test_loss-steps-1")
    assert ">Test perplexity by updates, keep=3</title>" in svg(last)
    (methods,) = (section for section in report.sections if section.slug == "methods")
    headings = [block.text for block in methods.blocks if isinstance(block, Heading)]
    assert headings == ["With keep=2", "With keep=3", "With every setting"]  # the tables are not of the last alone
    (selected,) = (section for section in report.sections if section.slug == "selected")
    assert selected.blocks[0] == "Over all 2 settings together; each run counts the same."
    (settings,) = (section for section in report.sections if section.slug == "settings")
    table = settings.blocks[0]
    assert isinstance(table, Table)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["keep"] == ("2", "2", "3", "3")
    assert set(rows) == {"keep", "method"}


def test_data_that_are_gone_leave_the_ids(make_run, runs, tmp_path, tiny_data):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    run = make_run(tmp_path / "run", "method=greats", "keep=3", f"data.sources={data}/copy.jsonl,{data}/noise.jsonl")
    shutil.rmtree(data)
    report = build_report([run.folder])
    (section,) = (section for section in report.sections if section.slug == "examples")
    assert "the data cannot be read any more" in str(section.blocks[1])
    (most, _) = (block for block in section.blocks if isinstance(block, Examples))
    assert most.examples[0].parts == ()
    assert "by-length" not in [chart.name for chart in charts_of(report)]


def test_runs_of_an_earlier_version_lack_what_they_did_not_record(runs, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(runs / "greats-0", folder)
    for name in ("metrics.jsonl", "summary.json"):
        lines = (folder / name).read_text().splitlines() if name.endswith("l") else [(folder / name).read_text()]
        new = {"seconds_waiting", "seconds_picking", "versions", "device", "memory", "time"}
        kept = [{key: value for key, value in json.loads(line).items() if key not in new} for line in lines]
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in kept))
    text = page(build_report([folder]), "today")
    assert "These runs did not record their memory." in text
    assert "These runs did not record what they ran on." in text


def test_a_report_is_replaced_but_nothing_else(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "build_report", lambda folders: Report(folders[0].name, "", "", (), ()))
    path = tmp_path / "mine.html"
    path.write_text("<html>my page</html>")
    with pytest.raises(RunError, match="is no report of greats"):
        write_report(runs / "greats-0", path)
    assert path.read_text() == "<html>my page</html>"
    first = write_report(runs / "greats-0", tmp_path / "new" / "r.html").html
    before = first.read_text()
    assert write_report(runs / "greats-1", first).html == first
    assert "greats-0" in before
    assert "greats-0" not in first.read_text()
    with pytest.raises(RunError, match="cannot be written"):
        write_report(runs / "greats-0", tmp_path)


def test_without_matplotlib_there_are_numbers(runs, tmp_path, monkeypatch, capsys):
    real = builtins.__import__

    def refuse(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    output = tmp_path / "bare.html"
    assert main(["report", str(runs), "--output", str(output)]) == 0
    heard = capsys.readouterr()
    assert heard.err == "no pictures were drawn: run pip install matplotlib\n"
    assert heard.out == f"{output}\n"
    found = Elements(output.read_text())
    assert not [a for a in found.named("svg") if a.get("role") == "img"]
    assert [a for a in found.named("details") if "open" in a]
    assert [path.name for path in tmp_path.iterdir()] == ["bare.html"]


def test_the_command_says_where_everything_is(runs, capsys, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    chart = next(chart for chart in charts_of(build_report([runs / "greats-0"])) if chart.name == "by-source")
    short = Report("short", "", "", (), (Section("only", "Only", (Charts((chart,)),)),))
    monkeypatch.setattr(writing, "build_report", lambda folders: short)
    folder = tmp_path / "run"
    folder.mkdir()
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}/report.html\n1 picture in {folder}/report_files\n"
    assert [path.name for path in (folder / "report_files").iterdir()] == ["by-source.png"]
    monkeypatch.undo()
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "there is no such folder" in capsys.readouterr().err


def test_methods_look_the_same_in_every_report_and_different_from_each_other():
    one, other = styles_of_methods(["greats", "regular", "opus"]), styles_of_methods(["mine", "regular", "greats"])
    assert one["greats"] == other["greats"]
    assert one["regular"] == other["regular"]
    several = styles_of_methods(
        ["greats", "regular", "random_k", "greats_first_order", "max_loss", "target_only", "a", "b"]
    )
    assert len(set(several.values())) == 8
    for part in ("light", "dark", "dashes", "marker"):
        assert len({getattr(style, part) for style in STYLES}) == len(STYLES), part


def contrast(one: str, other: str) -> float:
    """Of two colours, as the Web Content Accessibility Guidelines define it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_lines_and_text_stand_out_from_both_backgrounds():
    light, dark = "#fefefe", IN_THE_DARK["#fefefe"]
    for style in STYLES:
        assert contrast(style.light, light) > 2.5, style
        assert contrast(style.dark, dark) > 4.5, style
    for text in (INK, "#636c76"):
        assert contrast(text, light) > 4.5
        assert contrast(IN_THE_DARK[text], dark) > 4.5


def test_of_many_sources_the_rare_ones_are_shown_as_one(make_run, tmp_path):
    names = [f"{source}-{i}" for source in "abcdefghijklmnop" for i in range(3)]
    run = make_run(tmp_path / "run", "method=max_loss", "keep=3", names=names)
    chart = next(chart for chart in charts_of(build_report([run.folder])) if chart.name == "by-source")
    assert len(chart.table.rows) == 12
    assert chart.table.rows[-1][0] == "5 others"
    shares = [float(row[1].removesuffix(" %")) for row in chart.table.rows]
    assert sum(shares) == pytest.approx(100, abs=1)
    # Also where another method has seen none of the rare ones.
    other = make_run(tmp_path / "other", "method=greats", "keep=3", names=[name for name in names if name[0] < "d"])
    chart = next(c for c in charts_of(build_report([run.folder, other.folder])) if c.name == "by-source")
    assert len(chart.table.rows) == 12
    assert chart.table.rows[-1][-1] == "0.0 % (-)"
