"""A document of headings, paragraphs, tables and pictures, written as Markdown and as one self-contained HTML file.

Texts are plain: markup in them is escaped, and shows as it is written.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

LONG = 32  # letters that a cell may have on one line
STYLE = """
:root { color-scheme: light dark; --line: #d8dce3; --soft: #f3f5f8; --link: #0b57d0; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --line: #3d3f43; --soft: #26282b; --link: #8ab4f8; --page: #1a1a1a; }
  body { background: var(--page); color: #e4e6ea; }
  figure img { filter: invert(.9) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, p, li { overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: .25rem; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; padding-top: .5rem; border-top: 1px solid var(--line); }
a { color: var(--link); }
.note { opacity: .75; margin-top: 0; }
nav ul { columns: 15rem; padding-left: 1.2rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .7rem .35rem 0; text-align: left; vertical-align: top;
  white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; }
td.long, td.text { white-space: normal; min-width: 9rem; max-width: 26rem; overflow-wrap: anywhere; }
td.text { min-width: 17rem; }
.tall { max-height: 36rem; overflow-y: auto; border: 1px solid var(--line); border-radius: 6px; padding: 0 .7rem; }
.tall th { position: sticky; top: 0; background: var(--page); }
.filter { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin-top: 1rem; }
.filter[hidden] { display: none; }
.filter input, .filter select { font: inherit; padding: .3rem .5rem; max-width: 100%; min-width: 0; color: inherit;
  background: var(--soft); border: 1px solid var(--line); border-radius: 6px; }
figure { margin: 1rem 0; overflow-x: auto; }
img { display: block; width: 100%; min-width: 36rem; }
@media (max-width: 40rem) {
  .tall, .tall tbody, .tall table { display: block; }
  .tall thead { display: none; }
  .tall tr:not([hidden]) { display: block; border-bottom: 1px solid var(--line); padding: .5rem 0; }
  .tall td, .tall td.long, .tall td.text { display: block; border: 0; padding: 0; white-space: normal; min-width: 0; }
  .tall td:empty { display: none; }
  .tall td::before { content: attr(data-head) ": "; opacity: .65; }
}
"""
# Shows the rows of a table that have every word typed and the values chosen.
SCRIPT = """
for (const box of document.querySelectorAll(".filter")) {
  const rows = [...box.nextElementSibling.querySelectorAll("tbody tr")];
  const choices = [...box.querySelectorAll("select")];
  const show = () => {
    const words = box.querySelector("input").value.toLowerCase().split(/\\s+/);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const chosen = choices.every((one) => !one.value || row.cells[one.dataset.column].textContent === one.value);
      row.hidden = !(chosen && words.every((word) => text.includes(word)));
      shown += !row.hidden;
    }
    box.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
  };
  box.addEventListener("input", show);
  box.hidden = false;
  show();
}
"""


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
        title = escape(self.title)
        names = [heading for heading, _ in self.sections]
        links = "".join(f'<li><a href="#section-{n}">{escape(name)}</a></li>\n' for n, name in enumerate(names, 1))
        body = [f"<h1>{title}</h1>", f'<p class="note">{escape(self.note)}</p>' if self.note else ""]
        body.append(f'<nav aria-label="Contents">\n<ul>\n{links}</ul>\n</nav>')
        for number, (heading, blocks) in enumerate(self.sections, 1):
            body += [f'<h2 id="section-{number}">{escape(heading)}</h2>', *map(html_block, blocks)]
        if any(isinstance(block, Table) and block.choices for _, blocks in self.sections for block in blocks):
            body.append(f"<script>{SCRIPT}</script>")
        head = '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n{head}<title>{title}</title>\n<style>{STYLE}</style>\n'
            "</head>\n<body>\n" + "\n".join(filter(None, body)) + "\n</body>\n</html>\n"
        )

    def markdown(self) -> str:
        """The document as GitHub's Markdown; it names the pictures' files."""
        parts = [f"# {plain(self.title)}", *([plain(self.note)] if self.note else [])]
        for heading, blocks in self.sections:
            parts += [f"## {plain(heading)}", *map(markdown_block, blocks)]
        return "\n\n".join(parts) + "\n"


def html_block(block: str | Table | Picture) -> str:
    """One block as HTML."""
    if isinstance(block, Table):
        return html_table(block)
    if isinstance(block, Picture):
        data = base64.b64encode(block.png).decode()
        return f'<figure><img src="data:image/png;base64,{data}" alt="{escape(block.alt)}"></figure>'
    return f"<p>{escape(block)}</p>"


def html_table(table: Table) -> str:
    """A table as HTML, which scrolls inside itself, with fields to choose rows by."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.columns)
    heads = table.columns if table.choices else [""] * len(table.columns)
    body = "".join(f"<tr>{''.join(map(html_cell, row, heads))}</tr>\n" for row in table.rows)
    written = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"
    if not table.choices:
        return f'<div class="scroll">\n{written}\n</div>'
    fields = '<input type="search" placeholder="words in the row" aria-label="words in the row">\n'
    for name in table.choices:
        column = list(table.columns).index(name)
        values = dict.fromkeys(row[column] for row in table.rows)
        values = "".join(f"<option>{escape(value)}</option>" for value in values)
        fields += f'<select data-column="{column}" aria-label="{escape(name)}">'
        fields += f'<option value="">{escape(name)}: all</option>{values}</select>\n'
    fields = f'<div class="filter" hidden>\n{fields}<output></output>\n</div>'
    return f'{fields}\n<div class="scroll tall">\n{written}\n</div>'


def html_cell(text: str, head: str) -> str:
    """A cell as HTML, with the head of its column for narrow screens, which show a row as lines."""
    name = f' data-head="{escape(head)}"' if head else ""
    shape = " class=text" if len(text) > 2 * LONG else " class=long" if len(text) > LONG and " " in text else ""
    return f"<td{shape}{name}>{escape(text)}</td>"


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
