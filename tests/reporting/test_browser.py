"""The report in a real browser, Debian's chromium without a window: it fits a phone, and rows can be chosen."""

import json
import re
import shutil
import subprocess
from html import escape, unescape

import pytest
from test_report import predictions

from bert_multitask.reporting.document import Document, Picture, Table
from bert_multitask.reporting.plots import WIDTH, confusion_matrix, length_errors, to_png

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
# The page in a frame as wide as a phone or a desktop; what the script finds in it is written into the frame's own page.
FRAME = """<!doctype html><body><iframe id="page" style="border: 0; width: {width}px; height: 900px" srcdoc="{page}">
</iframe><pre id="found"></pre><script>
document.getElementById("page").addEventListener("load", (event) => {{
  const page = event.target.contentDocument;
  document.getElementById("found").textContent = JSON.stringify(({script})(page));
}});
</script></body>"""


def look(folder, document: Document, script: str, width: int = 400) -> object:
    """What a JavaScript function of the page finds, where the browser's window is so many pixels wide."""
    file = folder / "frame.html"
    file.write_text(FRAME.format(width=width, page=escape(document.html()), script=script), encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command = [CHROMIUM, *flags, "--virtual-time-budget=5000", "--dump-dom", file.as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', page, re.DOTALL)[1]))


@pytest.fixture(scope="module")
def document() -> Document:
    """Long names and texts, wide tables, pictures, and rows to choose from."""
    document = Document("Report of /a/folder/with/a/long/path/that/has/no/space/anywhere/run-1", "Made today.")
    rows = [["sst", "large error", "a short text", "0.1"], ["sst", "label may be wrong", "neutral " * 60, "0.2"]]
    rows += [
        ["quora", "large error", "x" * 300, "0.3"],
        ["sts", "large error", "b", "1"],
    ]
    document.add("Wide", "word " * 50, Table([f"column_of_numbers_{n}" for n in range(12)], [["0.123"] * 12] * 3))
    part = predictions("sst", [0, 1, 2, 3, 4] * 20, [0, 1, 2, 4, 4] * 20)
    document.add(
        "Pictures", *(Picture("x", to_png(draw), "x") for draw in (confusion_matrix(part), length_errors([part])))
    )
    document.add("Rows", Table(["task", "why", "text", "p"], rows, choices=("task", "why")))
    return document


@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_is_as_wide_as_the_window(tmp_path, document, width):
    """What is wider scrolls inside itself."""
    script = """(page) => [page.documentElement.scrollWidth, page.querySelector(".scroll").scrollWidth]"""
    page, table = look(tmp_path, document, script, width)
    assert page <= width and table > 900, "the table is wider than a phone"


@pytest.mark.parametrize("width", [400, 500])
def test_pictures_fit_a_phone_and_can_be_read(tmp_path, document, width):
    """None scrolls, and the smallest letters, of 9 points, are nearly 7 px high, beside a scroll bar."""
    script = """(page) => [...page.querySelectorAll("figure")].map(
      (one) => [one.scrollWidth, one.clientWidth, one.firstChild.getBoundingClientRect().width])"""
    for scrolled, seen, shown in look(tmp_path, document, script, width):
        assert scrolled == seen <= width and shown / WIDTH * 9 / 72 > 6.8


def test_rows_are_chosen(tmp_path, document):
    """By words in any cell, by values, and by both."""
    script = """(page) => {
      const box = page.querySelector(".filter"), [task, why] = box.querySelectorAll("select");
      const rows = [...page.querySelectorAll(".tall tbody tr")];
      const choose = (words, one, other) => {
        [box.querySelector("input").value, task.value, why.value] = [words, one, other];
        box.querySelector("input").dispatchEvent(new Event("input", {bubbles: true}));
        const seen = rows.map((row, number) => row.offsetHeight > 0 ? number : -1).filter((number) => number >= 0);
        return [seen, box.querySelector("output").textContent];
      };
      return [choose("", "", ""), choose("NEUTRAL wrong", "", ""), choose("", "sst", ""),
        choose("", "sst", "large error"), choose("short", "quora", ""), box.hidden];
    }"""
    everything, words, task, both, none, hidden = look(tmp_path, document, script)
    assert everything == [[0, 1, 2, 3], "4 of 4 rows"] and not hidden
    assert (words, task, both, none) == (
        [[1], "1 of 4 rows"],
        [[0, 1], "2 of 4 rows"],
        [[0], "1 of 4 rows"],
        [[], "0 of 4 rows"],
    )


def test_a_dark_page_has_dark_pictures(tmp_path, document):
    """The rule is there, and is of dark pages alone."""
    script = """(page) => [...page.styleSheets[0].cssRules].filter((rule) => rule.media)
      .map((rule) => [rule.media.mediaText, rule.cssText.includes("invert")])"""
    assert ["(prefers-color-scheme: dark)", True] in look(tmp_path, document, script)
    shown = """(page) => getComputedStyle(page.querySelector("figure img")).filter"""
    assert look(tmp_path, document, shown) == "none"
