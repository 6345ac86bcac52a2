"""The report in a browser: nothing sticks out on a telephone, and it is light or dark as its reader wants it."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from greats_jax.experiments.report.styles import IN_THE_DARK, PAPER

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
LIGHT, DARK = "preferredColorScheme=1", "preferredColorScheme=0"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

MEASURE = """
<script>
const wide = [...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll, svg") &&
  e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName + "." + e.className);
const small = [...document.querySelectorAll("figure text")].filter(e => e.getBoundingClientRect().height > 0 &&
  parseFloat(getComputedStyle(e).fontSize) * e.ownerSVGElement.getScreenCTM().a < MIN).map(e => e.textContent);
const widths = [innerWidth, document.documentElement.scrollWidth].join(" ");
parent.postMessage("measured " + [widths, wide, small].join(" | "), "*");
</script>
"""

FRAME = """
<script>addEventListener("message", event => document.title = event.data)</script>
<iframe src="copy.html" width="WIDTH" height="1400" style="border: 0"></iframe>
"""
"""A window of Chromium is at least 500 pixels wide; a frame in it may be as narrow as a telephone."""


@pytest.fixture(scope="session")
def html(written) -> Path:
    return written.html


def browse(page: Path, width: int, scheme: str, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars",
        f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},1400", f"--blink-settings={scheme}",
        *arguments, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize(
    ("width", "smallest"), [(360, 8.5), *(pytest.param(width, 9, marks=pytest.mark.slow) for width in (390, 1280))]
)
def test_nothing_sticks_out_and_text_in_pictures_can_be_read(html, tmp_path, width, smallest):
    # The report itself lets no script run; a copy without that policy is measured by one.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html.read_text(encoding="utf-8"))
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace("</body>", MEASURE.replace("MIN", str(smallest)) + "</body>"), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)), encoding="utf-8")
    said = browse(frame, 1400, LIGHT, "--dump-dom")
    found = re.search(r"<title>measured (\d+) (\d+) \| (.*) \| (.*)</title>", said)
    assert found is not None
    assert int(found[1]) == width
    assert int(found[2]) <= width
    assert found[3] == ""
    assert found[4] == ""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_screenshots_in_light_and_dark(html, tmp_path, width):
    from PIL import Image

    for scheme, background in (LIGHT, PAPER), (DARK, IN_THE_DARK[PAPER]):
        path = tmp_path / f"{scheme}.png"
        browse(html, width, scheme, f"--screenshot={path}")
        pixels = np.asarray(Image.open(path).convert("RGB"), int) @ (1 << 16, 1 << 8, 1)
        assert pixels.shape == (1400, width)
        assert f"#{pixels[2, 2]:06x}" == background
        assert len(np.unique(pixels)) > 200  # letters, lines and bands
        assert 0.05 < (pixels != pixels[2, 2]).mean() < 0.6


@pytest.mark.slow
def test_print_is_light_and_has_every_section(html, tmp_path):
    path = tmp_path / "report.pdf"
    browse(html, 1280, DARK, f"--print-to-pdf={path}", "--no-pdf-header-footer")
    pages = path.read_bytes().count(b"/Type /Page\n")
    assert 3 <= pages <= 16


@pytest.mark.slow
def test_no_script_runs_in_it(html, tmp_path):
    copy = tmp_path / "attacked.html"
    attack = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
    copy.write_text(html.read_text(encoding="utf-8").replace("</body>", f"{attack}</body>"), encoding="utf-8")
    assert "<title>taken" not in browse(copy, 1280, LIGHT, "--dump-dom")
