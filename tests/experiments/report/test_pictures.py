"""Charts as pictures."""

import re

import numpy as np
import pytest

from greats_jax.experiments.report.document import Chart, Key, Table
from greats_jax.experiments.report.pictures import svg, write_pngs

pytest.importorskip("matplotlib")


def chart(draw, **other) -> Chart:
    return Chart("name", "Title", "What it says", draw, Table(("a",), (("1",),)), **other)


def texts_of(picture: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", picture)


def test_what_is_written_in_a_picture_stays_as_it_is():
    labels = ["0.0005", "#0072b2", "id=x url(#a)", "font-family: mine; font: 9px mine"]

    def draw(axes) -> None:
        axes.plot([0, 1], [0, 1], color="#0072b2")
        axes.set_xticks(range(len(labels)), labels)

    picture = svg(chart(draw))
    assert set(labels) <= set(texts_of(picture))
    assert 'id="name-' in picture
    drawn = re.sub(r">[^<]*<", "><", picture)
    assert "#0072b2" not in drawn
    assert "var(--s1)" in drawn
    assert not re.search(r"\d\.\d{3}", drawn)


def test_a_dollar_sign_begins_no_formula(tmp_path):
    name = r"$\nothing_{$"
    drawn = chart(lambda axes: axes.set_xticks([0], [name]), keys=(Key(name, 1),))._replace(title=name)
    assert name in texts_of(svg(drawn))
    assert write_pngs([drawn], tmp_path) == [tmp_path / "name.png"]


@pytest.mark.parametrize("bar", [False, True])
@pytest.mark.parametrize("longest", ["greats_first_order", "a_method_of_a_name_that_is_" * 3])
def test_legend_and_title_are_not_cut_off(tmp_path, longest, bar):
    from PIL import Image

    names = ["greats", "grad_norm", "regular", "random_k", longest, "max_loss", "target_only"]
    keys = tuple(Key(name, style, bar) for style, name in enumerate(names))
    drawn = chart(lambda axes: axes.plot([0, 1], [0, 1]), keys=keys)._replace(title=f"Share of each source, {longest}")
    (path,) = write_pngs([drawn], tmp_path)
    pixels = np.asarray(Image.open(path).convert("L"))
    assert (pixels[:, -4:] == 255).all()
    assert (pixels[:4] == 255).all()
    last = np.flatnonzero((pixels < 250).any(axis=1))[-1]
    assert 4 <= len(pixels) - last < 40  # the legend ends there, and no room is left over
