"""Draw the tables and pictures of README.md and docs/ from docs/results/results.json.

    python recipes/draw_results.py        # rewrites the text between <!-- draw: NAME --> and <!-- end -->, and the SVGs

In that file, `runs` holds groups of rows that share a command, data and seeds, unless a row has its own. A score is a
list with the number of each seed; several become mean ± sd. A row with `encoders`, the number of encoders that answer
all three questions, is in the overview too; a group of such rows alone has no table of its own. `tables` are shown as
they are; one with the name of one of the paper's tables adds columns to it.

A study.json of recipes/ablate.py beside it is a group of runs, too, by its file's name: docs/results/levers.json is
drawn by <!-- draw: levers -->. So a study is recorded by `cp OUT/study.json docs/results/levers.json && python
recipes/draw_results.py`. A row of results.json with `study` and `variant` has the scores and seeds of that variant.
"""

import json
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from paper.results import beside_the_paper, cell
from paper.tables import COLUMNS, TABLES, Row, row_seeds

from bert_multitask.model.errors import InputError
from bert_multitask.reporting.document import Table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "results.json"
PICTURES = ROOT / "docs" / "pictures"
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("results", "reproduce", "ablations")))
WIDTH, CODE_WIDTH = 118, 72  # letters of a line of prose, and of code that fits a page of the site
HALVES = ("half A", "half B")  # of the dev rows, as recipes/ablate.py calls them
SHAPES = {"bert-base": (12, 768), "all-mpnet-base-v2": (12, 768), "6-layer MiniLM": (6, 384)}  # layers, width
# Of the paper's systems, the best of each architecture and the ensemble, whose members are three of either: the label
# in Table 5, how many encoders answer, and the name beside the point.
PAPER = (
    ("RR + TPE + SMART + DF (2)", 1, "1 BERT (paper)"),
    ("3-BERT + TPE + SMART + DF (0)", 3, "3 BERTs (paper)"),
    ("Ensemble", 3 * 3 + 3, "ensemble of 6 (paper)"),
)
THEMES = {
    "light": {"ink": "#1f2328", "soft": "#59636e", "line": "#d1d9e0", "box": "#f6f8fa", "accent": "#0969da"},
    "dark": {"ink": "#f0f6fc", "soft": "#9198a1", "line": "#3d444d", "box": "#151b23", "accent": "#4493f8"},
}


def million_weights(model: str) -> float:
    """The weights of an encoder's layers, which every token passes, in millions."""
    layers, width = SHAPES[model]
    return layers * (12 * width**2 + 13 * width) / 1e6


def read_results(folder: Path) -> dict:
    """results.json of a folder, with the studies beside it among its runs."""
    results = json.loads((folder / RESULTS.name).read_text(encoding="utf-8"))
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "study" in record:
            results["runs"][path.stem] = study_runs(record)
    for group in results["runs"].values():
        for row in [row for row in group["rows"] if "study" in row]:
            variants = {variant["system"]: variant for variant in results["runs"][row["study"]]["rows"]}
            row |= {field: variants[row["variant"]][field] for field in (*COLUMNS, "seeds")}
    return results


def study_runs(record: Mapping) -> dict:
    """A study of recipes/ablate.py as a group of runs: each variant's scores on all dev rows, and its overall score on
    each half of them and less the reference's."""
    rows, study = [], record["study"]
    for variant, parts in record["results"].items():
        row = {column: parts["all"][column]["values"] for column in COLUMNS}
        row |= {part: parts[part]["overall"]["values"] for part in HALVES}
        row |= {"system": variant, "seeds": parts["all"]["seeds"], "minutes": mean(record["minutes"][variant])}
        row |= {"change": describe_change(study, variant), "less": parts["all"]["overall"].get("difference")}
        rows.append(row)
    model = study["base"].get("model_name_or_path", "bert-base")
    about = {"command": record["command"], "data": "dev rows", "model": model, "seeds": None}
    return about | {"reference": study["reference"], "rows": rows}


def describe_change(study: Mapping, variant: str) -> str:
    """The flags of a variant that are others than of the variant above it that is most like it."""
    names = list(study["variants"])
    above = names[: names.index(variant)]
    if not above:
        return "the base"
    flags = {name: flat_flags(study["variants"][name] or {}) for name in [*above, variant]}
    changes = {name: dict(flags[variant].items() - flags[name].items()) for name in above}
    gone = {name: flags[name].keys() - flags[variant].keys() for name in above}
    like = min(above, key=lambda name: len(changes[name]) + len(gone[name]))
    parts = [f"`{flag}: {changes[like][flag]}`" for flag in flags[variant] if flag in changes[like]]
    return f"{like} with " + ", ".join(parts + [f"no `{flag}`" for flag in flags[like] if flag in gone[like]])


def flat_flags(flags: Mapping, path: str = "") -> dict[str, str]:
    """Flags as {path: value}, that of a task's field with a dot: sts.head."""
    found = {}
    for name, value in flags.items():
        if isinstance(value, Mapping):
            found |= flat_flags(value, path if name == "tasks" else f"{path}{name}.")
        else:
            found[f"{path}{name}"] = str(value)
    return found


def overview(results: Mapping) -> list[dict]:
    """The systems of the overview, cheapest first, each with its `cost`: the weights that a token passes, in millions,
    when all three questions are asked."""
    systems = []
    for label, encoders, name in PAPER:
        row = next(row for row in TABLES["table5"].rows if row.label == label)
        scores = {column: [number] for column, number in row.paper.items()}
        more = {"system": f"the paper's {label}", "label": name, "model": "bert-base", "pairs": "283,010"}
        systems.append(scores | more | {"encoders": encoders, "title": None})
    for group in results["runs"].values():
        systems += [group | row for row in group["rows"] if "encoders" in row]
    for system in systems:
        system["cost"] = system["encoders"] * million_weights(system["model"])
    return sorted(systems, key=lambda system: (system["cost"], -np.mean(system["overall"])))


def overview_table(results: Mapping) -> Table:
    """The overview as a table: each system is a link to the section that has its command and data."""
    columns = ["system", "encoder", "Quora pairs", "cost", *COLUMNS.values()]
    lines = []
    for system in overview(results):
        scores = [cell(system[column]) for column in COLUMNS]
        cost = f"{system['encoders']} × {million_weights(system['model']):.1f} M".replace(" ", "\N{NO-BREAK SPACE}")
        title = system["title"]
        name = f"[{system['system']}](#{title.lower().replace(' ', '-')})" if title else system["system"]
        lines.append([name, system["model"], system["pairs"], cost, *scores])
    return Table(columns, lines)


def run_table(group: Mapping) -> Table:
    """A group of runs: of several seeds each one's scores below the mean."""
    columns = {column: name for column, name in COLUMNS.items() if any(column in row for row in group["rows"])}
    seconds = any("seconds" in row for row in group["rows"])
    lines = []
    for row in group["rows"]:
        seeds = row.get("seeds", group["seeds"])
        shown = ", ".join(map(str, seeds)) if seeds else "not recorded"
        scores = [cell(row[column]) + each_seed(row[column]) for column in columns]
        lines.append([row["system"], *scores, shown, *([f"{row.get('seconds', '')}"] if seconds else [])])
    return Table(["", *columns.values(), "seed", *(["seconds"] if seconds else [])], lines)


def study_table(group: Mapping) -> Table:
    """A study: each variant's scores as mean ± sd over the seeds, and its difference from the reference."""
    columns = ["", *COLUMNS.values(), f"Overall less {group['reference']}", *HALVES, "seeds", "minutes"]
    lines = []
    for row in group["rows"]:
        less = row["less"] and "{value:+.3f} ({low:+.3f} to {high:+.3f})".format(**row["less"])
        scores, halves = ([cell(row[column]) for column in part] for part in (COLUMNS, HALVES))
        seeds = ", ".join(map(str, row["seeds"]))
        lines.append([row["system"], *scores, less or "", *halves, seeds, f"{row['minutes']:.0f}"])
    return Table(columns, lines)


def study_list(group: Mapping) -> str:
    """The variants of a study as a Markdown list: what each one changes."""
    items = [f"- **{row['system']}**: {row['change']}" for row in group["rows"]]
    return "\n".join(line for item in items for line in textwrap.wrap(item, WIDTH, subsequent_indent="  "))


def each_seed(scores: list[float]) -> str:
    """The scores of several seeds in brackets."""
    return f" ({', '.join(f'{score:.3f}' for score in scores)})" if len(scores) > 1 else ""


def reproduced(results: Mapping, element: str) -> Table:
    """One of the paper's tables: the scores of our reproduce_paper.py, with the paper's in brackets."""
    group = results["runs"]["reproduced"]
    runs = {(row["system"], *row.get("seeds", group["seeds"])): row for row in group["rows"]}

    def score(row: Row, column: str) -> str:
        """One cell; rows without a system are the ensemble's."""
        if not row.systems:
            return "no labels here" if row.label == "Test" else cell(runs["ensemble", 0][column])
        return cell([runs[row.systems[column].name, seed][column][0] for seed in row_seeds(row, group["seeds"])])

    table = beside_the_paper(TABLES[element], score)
    lines = [
        [label, *(f"{ours} ({paper})" for ours, paper in zip(scores[::2], scores[1::2], strict=True))]
        for label, *scores in (table.columns, *table.rows)
    ]
    if element in results["tables"]:
        more = results["tables"][element]
        added = {label: cells for label, *cells in (more["columns"], *more["rows"])}
        lines = [line + added[line[0]] for line in lines]
    return Table(lines[0], lines[1:])


def drawn(results: Mapping, name: str) -> str:
    """The Markdown of one block: a table, and below a group of runs its command and data."""
    if name == "overview":
        return markdown(overview_table(results))
    if name in TABLES:
        return markdown(reproduced(results, name))
    if name in results["tables"]:
        return markdown(Table(**results["tables"][name]))
    if name not in results["runs"]:
        raise InputError(f"<!-- draw: {name} -->: {RESULTS.name} has no runs and no table of that name")
    group = results["runs"][name]
    is_command = group["command"].startswith(("python", "bert-multitask"))
    about = f"{group['model']}; {group['data']}." + ("" if is_command else f" {group['command']}.")
    below = "\n".join(textwrap.wrap(about, WIDTH))
    command = f"\n\n```sh\n{fold(group['command'])}\n```" if is_command else ""
    if "reference" in group:
        return f"{markdown(study_table(group))}\n\n{study_list(group)}\n\n{below}{command}"
    if all("encoders" in row for row in group["rows"]):
        return below + command
    return f"{markdown(run_table(group))}\n\n{below}{command}"


def markdown(table: Table) -> str:
    """A table whose cells are Markdown already."""
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fold(command: str) -> str:
    """A command on lines of at most CODE_WIDTH letters, broken before its flags."""
    lines = [""]
    for number, part in enumerate(command.split(" --")):
        part = part if not number else f" --{part}"
        if len(lines[-1] + part) > CODE_WIDTH - 2:
            lines.append("   ")
        lines[-1] += part
    return " \\\n".join(lines)


def rewrite(page: str, results: Mapping) -> str:
    """A page with its drawn blocks written anew.

    Raises:
        InputError: a block has no end.
    """
    block = re.compile(r"(<!-- draw: (.*?) -->).*?(<!-- end -->)", re.DOTALL)
    if len(block.findall(page)) != page.count("<!-- draw: "):
        raise InputError("a block has no <!-- end -->")
    return block.sub(lambda found: f"{found[1]}\n\n{drawn(results, found[2])}\n\n{found[3]}", page)


def score_picture(results: Mapping, colours: Mapping[str, str]) -> Figure:
    """Overall score against cost: what was trained on which data has the same mark."""
    systems = overview(results)
    ours = [system for system in systems if system["model"] != "bert-base"]
    paper = [system for system in systems if not system["title"]]
    others = [system for system in systems if system not in ours + paper]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    marks = (
        (ours, "s", colours["accent"], "MiniLM or MPNet, 14,000 Quora pairs"),
        (paper, "o", colours["ink"], "bert-base, the paper"),
        (others, "^", colours["soft"], "bert-base, other reports"),
    )
    for group, mark, colour, label in marks:
        points = np.array([[system["cost"], np.mean(system["overall"])] for system in group])
        axis.scatter(*points.T, marker=mark, color=colour, s=48, label=label, zorder=3)
        spread = [np.std(system["overall"], ddof=1) if len(system["overall"]) > 1 else 0 for system in group]
        axis.errorbar(*points.T, spread, fmt="none", ecolor=colour)
        for number, (system, place) in enumerate(zip(group, points, strict=True)):
            left = mark == "^" and number % 2  # other reports lie close together
            side = {"xytext": (-9 if left else 9, -3), "ha": "right" if left else "left"}
            axis.annotate(system["label"], place, **side, textcoords="offset points", color=colours["ink"], fontsize=9)
    ticks = sorted({round(system["cost"], 1) for system in systems})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlim(8, 4500)
    axis.set_ylim(0.745, 0.8)
    axis.set_xlabel("cost of all three answers: million weights that a token passes (log scale)")
    axis.set_ylabel("overall dev score")
    axis.legend(loc="lower right", frameon=False, labelcolor=colours["ink"])
    axis.tick_params(colors=colours["soft"])
    axis.xaxis.label.set_color(colours["soft"])
    axis.yaxis.label.set_color(colours["soft"])
    axis.grid(color=colours["line"], linewidth=0.6)
    axis.spines[:].set_visible(False)
    axis.patch.set_visible(False)
    return figure


def idea_picture(colours: Mapping[str, str]) -> str:
    """One text, one encoder, four answers, as SVG."""
    answers = (
        ("What is it about?", "rail travel"),
        ("How does the writer feel?", "annoyed"),
        ("Which words are personal data?", "Anna Lopez"),
        ("Does it mean “we left on time”?", "no"),
    )
    font = 'font-family="system-ui, sans-serif"'

    def text(x: int, y: int, words: str, colour: str, size: int = 15, more: str = "") -> str:
        return f'<text x="{x}" y="{y}" fill="{colours[colour]}" font-size="{size}" {font} {more}>{words}</text>'

    def box(x: int, y: int, width: int, height: int, line: str) -> str:
        shape = f'x="{x}" y="{y}" width="{width}" height="{height}" rx="8"'
        return f'<rect {shape} fill="{colours["box"]}" stroke="{colours[line]}" stroke-width="1.5"/>'

    def arrow(x: int, y: int, to_x: int, to_y: int) -> str:
        middle = (x + to_x) // 2
        path = f"M{x} {y} C{middle} {y} {middle} {to_y} {to_x} {to_y}"
        return f'<path d="{path}" fill="none" stroke="{colours["soft"]}" stroke-width="1.5"/>'

    parts = [box(10, 85, 225, 90, "line"), text(26, 124, "“The train was late again,”", "ink")]
    parts += [text(26, 148, "wrote Anna Lopez.", "ink"), arrow(235, 130, 290, 130)]
    parts += [box(290, 75, 150, 110, "accent"), text(365, 124, "one encoder", "ink", 18, 'text-anchor="middle"')]
    parts.append(text(365, 148, "read once", "soft", 14, 'text-anchor="middle"'))
    for number, (question, answer) in enumerate(answers):
        y = 10 + 62 * number
        parts += [arrow(440, 130, 490, y + 26), box(490, y, 380, 52, "line"), text(506, y + 31, question, "soft", 14)]
        parts.append(text(854, y + 32, answer, "accent", 16, 'text-anchor="end" font-weight="600"'))
    shown = "\n".join(parts)
    label = 'role="img" aria-label="One text is read once by one encoder, and four heads answer four questions"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 260" {label}>\n{shown}\n</svg>\n'


def main() -> None:
    """Rewrite the pages and the pictures."""
    results = read_results(RESULTS.parent)
    for page in PAGES:
        page.write_text(rewrite(page.read_text(encoding="utf-8"), results), encoding="utf-8")
    PICTURES.mkdir(exist_ok=True)
    settings = {"svg.fonttype": "none", "svg.hashsalt": "", "font.family": "sans-serif"}
    for theme, colours in THEMES.items():
        (PICTURES / f"idea-{theme}.svg").write_text(idea_picture(colours), encoding="utf-8")
        with matplotlib.rc_context(settings):
            figure = score_picture(results, colours)
            figure.savefig(PICTURES / f"score-cost-{theme}.svg", transparent=True, metadata={"Date": None})


if __name__ == "__main__":
    main()
