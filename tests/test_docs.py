"""The documentation site: built as `make docs` does, with every public name in its reference."""

import re
from html.parser import HTMLParser

import pytest
from conftest import ROOT

import bert_multitask

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
pytest.importorskip("mkdocstrings_handlers.python", reason="the site needs the extra `docs`, which `test` includes")


class Page(HTMLParser):
    """The anchors of a page, and the tables of arguments by the anchor above them."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: list[str] = []
        self.tables: dict[str, str] = {}
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get("id", "").startswith("bert_multitask."):
            self.anchors.append(attributes["id"])
        if tag == "table" and self.anchors:
            self.inside = True

    def handle_endtag(self, tag):
        self.inside &= tag != "table"

    def handle_data(self, data):
        if self.inside:
            self.tables[self.anchors[-1]] = self.tables.get(self.anchors[-1], "") + data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's folder. The build is strict: a broken link, an anchor that is not there, and a documented parameter
    that the signature lacks, or gives no type, are errors."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


@pytest.fixture(scope="module")
def reference(site) -> Page:
    return Page("".join(page.read_text() for page in sorted((site / "reference").glob("*.html"))))


def test_every_public_name_has_its_entry(reference):
    """Its arguments on one of the pages docs/reference/*.md, and before them an example in docs/reference.md."""
    entries = (ROOT / "docs" / "reference.md").read_text().split("\n### ")[1:]
    examples = {entry.split("\n")[0]: re.search(r"```python\n(.*?)```", entry, re.DOTALL)[1] for entry in entries}
    assert set(examples) == set(bert_multitask.__all__)
    for name, module in bert_multitask._MODULES.items():
        assert f"bert_multitask.{module}.{name}" in reference.anchors
        assert examples[name].startswith(f"from bert_multitask import {name}\n")


def test_every_module_has_its_entry(reference):
    """A new module belongs on one of the pages docs/reference/*.md."""
    paths = [path.relative_to(ROOT) for path in (ROOT / "bert_multitask").glob("*/*.py") if path.stem != "__init__"]
    assert len(paths) > 30
    assert {".".join(path.with_suffix("").parts) for path in paths} <= set(reference.anchors)


def test_arguments_have_types_and_words(reference):
    table = " ".join(reference.tables["bert_multitask.training.smart.smart_penalty"].split())
    assert "embeddings Tensor word embeddings x, float (B, ..., H). required" in table
    assert "radius float ε, the bound" in table and "1e-05" in table


def test_the_first_page_has_three_doors(site):
    text = (site / "index.html").read_text()
    assert re.findall(r"<h3 id=[^>]*>(.*?)<", text) == ["Use a model", "Train on my tasks", "Reproduce the paper"]
    assert 'href="howto/export.html"' in text and (site / "howto" / "export.html").exists()


def test_every_picture_and_notebook_is_there(site):
    for page in site.rglob("*.html"):
        for path in re.findall(r"<(?:img[^>]* src|a[^>]* href)=\"([^\"#]+\.(?:svg|png|ipynb))", page.read_text()):
            assert (page.parent / path).exists(), f"{page}: {path}"


def prose(text: str) -> list[str]:
    """The lines of a page that are neither code, nor of a table, nor HTML."""
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.splitlines() if not line.lstrip().startswith(("|", "<"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_prose_fits_120_columns(page):
    long = [line for line in prose(page.read_text(encoding="utf-8")) if len(line) > 120]
    assert not long


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_of_the_repository(page):
    """A page that is made for the site alone cannot be linked to: the pages are read in the repository too."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)|(?:href|src)=\"([^\"#]+)", text)
    paths = [path for path in map("".join, links) if not re.match(r"[a-z]+:", path)]
    assert not [path for path in paths if not (page.parent / path).exists()]


def test_reliability_names_tests_that_exist():
    """`test_FILE.py::test_NAME`, and `::test_NAME` for further ones of the same file; or a file alone."""
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    file, count = "", 0
    for name, test in re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", (ROOT / "docs" / "reliability.md").read_text()):
        file = name or file
        assert file in files and (not test or f"def {test}(" in files[file]), f"{file}::{test}"
        count += bool(test)
    assert count > 150


def test_the_flags_are_listed(site):
    text = (site / "reference" / "flags.html").read_text()
    for flag in ("--encoder_sharing", "--smart_radius", "--learning_rate", "--n_trials"):
        assert f"<code>{flag}</code>" in text


def test_no_page_asks_another_server(site):
    """For scripts, styles, fonts and pictures; links that a reader may follow are another matter."""
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)\b[^>]*?\b(?:src|href)=[\"']?(https?:[^\"' >]+)", page.read_text())
        assert not loaded, page
