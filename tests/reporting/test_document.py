"""Documents in both forms: nothing is loaded from elsewhere, and texts show as they are."""

import base64
import re
from html import unescape
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from bert_multitask.reporting.document import Document, Picture, Table, plain

NASTY = [
    "<script>alert(1)</script>",
    "a | b || c",
    "*bold* _it_ __x__ `code` ~~gone~~",
    "[link](http://x.y) ![i](z.png) <b>",
    "&lt; &amp; & \\| \\",
    "two\nlines\r\n# and more",
    "$x$ {a}",
    "\"quoted\" 'single'",
]


class Reader(HTMLParser):
    """Collects tags and the text of each cell and paragraph."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th", "p", "h1", "h2", "li", "style", "option", "output"):
            self.texts.append("")

    def handle_data(self, data):
        if self.texts:
            self.texts[-1] += data


@pytest.fixture
def document():
    document = Document("Title <&>")
    document.add("Section", NASTY[0], Table(["a", "b | c"], [[text, "x"] for text in NASTY]), None)
    document.add("Pictures", Picture("shape", b"\x89PNG bytes", 'a "shape" <of> [it]'))
    return document


def test_html_holds_everything(document, tmp_path):
    document.write(tmp_path / "new", "report")
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    tags = [tag for tag, _ in reader.tags]
    assert not {"script", "link", "iframe", "b"} & set(tags)
    sources = [attrs["src"] for _, attrs in reader.tags if "src" in attrs]
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,")
    assert base64.b64decode(sources[0].partition(",")[2]) == b"\x89PNG bytes"
    links = [attrs["href"] for _, attrs in reader.tags if "href" in attrs]
    assert links == [f"#{attrs['id']}" for tag, attrs in reader.tags if tag == "h2"] and len(links) == 2
    assert not re.search(r"url\(|@import", page)
    (image,) = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert image["alt"] == 'a "shape" <of> [it]'


def test_html_shows_texts_as_they_are(document):
    texts = [text.replace("\r\n", "\n").strip() for text in Reader(document.html()).texts]
    for text in [*NASTY, "Title <&>", "b | c"]:
        assert text.replace("\r\n", "\n") in texts


def test_markdown_shows_texts_as_they_are(document, tmp_path):
    """As a Markdown reader of its own reads it."""
    document.write(tmp_path, "report")
    assert (tmp_path / "shape.png").read_bytes() == b"\x89PNG bytes"
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(page)
    reader = Reader(rendered)
    assert {tag for tag, _ in reader.tags} == {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "img"}
    for text in [*NASTY, "Title <&>", "b | c"]:
        assert " ".join(text.split()) in [shown.strip() for shown in reader.texts]
    (image,) = [attrs for tag, attrs in reader.tags if tag == "img"]
    assert image == {"src": "shape.png", "alt": 'a "shape" <of> [it]'}


def test_a_table_to_choose_from():
    """One script, which loads nothing; a field for words, and one of the values of each column named."""
    document = Document("x")
    rows = [["a", "1", NASTY[0]], ["b", "1", "y"], ["a", "2", "z" * 50]]
    document.add("Rows", Table(["task", "why", "text"], rows, choices=("task", "why")))
    document.add("More", Table(["task"], [["c"]], choices=("task",)))
    reader = Reader(document.html())
    scripts = [attrs for tag, attrs in reader.tags if tag == "script"]
    assert scripts == [{}] and "alert" not in document.html().rpartition("<script>")[2]
    chosen = [attrs["data-column"] for tag, attrs in reader.tags if tag == "select"]
    assert chosen == ["0", "1", "0"]
    options = [attrs.get("value") for tag, attrs in reader.tags if tag == "option"]
    assert options == ["", None, None, "", None, None, "", None]
    heads = [attrs["data-head"] for tag, attrs in reader.tags if tag == "td"]
    assert heads == ["task", "why", "text"] * 3 + ["task"]


def test_a_section_of_nothing_is_left_out():
    document = Document("x", "made today")
    document.add("Empty", None)
    assert "Empty" not in document.html() and "Empty" not in document.markdown()
    assert "made today" in document.html() and "made today" in document.markdown()


def test_plain_is_one_line():
    assert plain("a\n\nb") == "a b" and unescape(plain("x")) == "x"
