"""A document of headings, paragraphs, tables and pictures, written as Markdown and as one self-contained HTML file.

Texts are plain: markup in them is escaped, and shows as it is written.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment

TEMPLATE = Path(__file__).with_name("document.html.jinja")


@dataclass
class Table:
    """A table of texts; every row has as many cells as there are columns.

    Args:
        columns: the heads of the columns.
        rows: the cells of the rows.
        choices: columns of few values by which readers of the HTML can filter rows; then they can search words, too.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    choices: Sequence[str] = ()


@dataclass
class Picture:
    """A PNG, the stem of its file's name, and its alternative text."""

    name: str
    png: bytes
    alt: str

    @property
    def url(self) -> str:
        """The picture itself as a URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass
class Document:
    """A title, a line below it, and sections of (heading, blocks); a block is a paragraph's text, a `Table` or a
    `Picture`."""

    title: str
    note: str = ""
    sections: list[tuple[str, list]] = field(default_factory=list)

    def add(self, heading: str, *blocks: "str | Table | Picture | None") -> None:
        """Add a section of the blocks that are not None, if there are any."""
        if shown := [block for block in blocks if block is not None]:
            self.sections.append((heading, shown))

    def write(self, folder: Path, name: str) -> None:
        """Write NAME.html, which needs no other file, and NAME.md with its PNGs beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.html").write_text(self.html(), encoding="utf-8")
        (folder / f"{name}.md").write_text(self.markdown(), encoding="utf-8")
        for _, blocks in self.sections:
            for block in blocks:
                if isinstance(block, Picture):
                    (folder / f"{block.name}.png").write_bytes(block.png)

    def html(self) -> str:
        """The document as HTML, its pictures inside it, with a table of contents."""
        environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
        template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
        can_choose = any(isinstance(block, Table) and block.choices for _, blocks in self.sections for block in blocks)
        return template.render(document=self, can_choose=can_choose)

    def markdown(self) -> str:
        """The document as GitHub's Markdown; it names the pictures' files."""
        parts = [f"# {plain(self.title)}", *([plain(self.note)] if self.note else [])]
        for heading, blocks in self.sections:
            parts += [f"## {plain(heading)}", *map(markdown_block, blocks)]
        return "\n\n".join(parts) + "\n"


def markdown_block(block: str | Table | Picture) -> str:
    """One block as Markdown."""
    if isinstance(block, Table):
        head, *rows = [" | ".join(map(plain, row)) for row in (block.columns, *block.rows)]
        return "\n".join(f"| {row} |" for row in (head, " | ".join(["---"] * len(block.columns)), *rows))
    if isinstance(block, Picture):
        return f"![{plain(block.alt)}]({block.name}.png)"
    return plain(block)


def plain(text: str) -> str:
    """A text on one line, with Markdown's characters escaped."""
    return re.sub(r"([\\`*_{}\[\]<>|~$#&!])", r"\\\1", " ".join(text.split()))
