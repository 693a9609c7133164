"""A document of headings, paragraphs, tables and pictures, written as Markdown and as one self-contained HTML file.

Texts are plain: whatever they hold is escaped, and shows as it is.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
table, img { margin: 1rem 0; }
th, td { border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); padding: .3rem .6rem;
  text-align: left; vertical-align: top; max-width: 24rem; overflow-wrap: break-word; }
td:first-child { min-width: 4rem; overflow-wrap: anywhere; }
th { vertical-align: bottom; }
img { display: block; max-width: 100%; width: 50rem; background: #fff; border-radius: 6px; padding: .4rem;
  box-sizing: border-box; }
"""


@dataclass
class Table:
    """A table of texts; every row has as many cells as there are columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Picture:
    """A PNG, the stem of its file's name, and the words for whoever cannot see it."""

    name: str
    png: bytes
    alt: str


@dataclass
class Document:
    """A title, and sections of (heading, blocks); a block is a paragraph's text, a `Table` or a `Picture`."""

    title: str
    sections: list[tuple[str, list]] = field(default_factory=list)

    def add(self, heading: str, *blocks: "str | Table | Picture | None") -> None:
        """Add a section; a block that is None, there being nothing to show, is left out."""
        self.sections.append((heading, [block for block in blocks if block is not None]))

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
        """The document as HTML, its pictures inside it."""
        title = escape(self.title)
        body = [f"<h1>{title}</h1>"]
        for heading, blocks in self.sections:
            body += [f"<h2>{escape(heading)}</h2>", *map(html_block, blocks)]
        head = f'<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n<title>{title}</title>'
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n<style>{STYLE}</style>\n</head>\n<body>\n'
            + "\n".join(body)
            + "\n</body>\n</html>\n"
        )

    def markdown(self) -> str:
        """The document as GitHub's Markdown; it names the pictures' files."""
        parts = [f"# {plain(self.title)}"]
        for heading, blocks in self.sections:
            parts += [f"## {plain(heading)}", *map(markdown_block, blocks)]
        return "\n\n".join(parts) + "\n"


def html_block(block: str | Table | Picture) -> str:
    """One block as HTML."""
    if isinstance(block, Table):
        head = "".join(f"<th>{escape(cell)}</th>" for cell in block.columns)
        rows = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in block.rows]
        return f"<table>\n<tr>{head}</tr>\n" + "".join(f"<tr>{row}</tr>\n" for row in rows) + "</table>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode()
        return f'<img src="data:image/png;base64,{data}" alt="{escape(block.alt)}">'
    return f"<p>{escape(block)}</p>"


def markdown_block(block: str | Table | Picture) -> str:
    """One block as Markdown."""
    if isinstance(block, Table):
        lines = [block.columns, ["---"] * len(block.columns), *block.rows]
        cells = [row if number == 1 else [plain(cell) for cell in row] for number, row in enumerate(lines)]
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)
    if isinstance(block, Picture):
        return f"![{plain(block.alt)}]({block.name}.png)"
    return plain(block)


def plain(text: str) -> str:
    """A text on one line in which no character means anything to Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|~$#&!])", r"\\\1", " ".join(text.split()))
