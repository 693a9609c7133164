"""A page on which people try a trained model, or two side by side: a tab a task, made from the task's kind."""

import contextlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..data.rows import text_columns
from ..model.card import escape
from ..model.errors import InputError, check_installed
from ..model.kinds import KINDS
from ..model.tasks import Task
from .attribution import Pieces, explain
from .pipeline import MultitaskPipeline, Texts, own_columns, plain_texts

if importlib.util.find_spec("gradio"):
    import gradio as gr

EXAMPLES = 4  # dev rows below a tab
EXAMPLE_LENGTH = 300  # characters of an example at most
LONGEST = 20_000  # characters of a text that is answered
MOST = 1_000  # rows of a request
CSS = """
.gradio-container {width: 100% !important; max-width: 1100px !important; margin: 0 auto !important}
.note p {font-size: var(--text-lg)}
footer .divider {display: none !important}
"""


class View(NamedTuple):
    """How answers of a kind of task are shown.

    Attributes:
        component: (task, caption) -> the component of the page.
        value: (task, texts of the row, the pipeline's answer) -> what the component shows.
        moved: what rises with `Kind.evidence`, in words; None where the kind has none.
    """

    component: Callable[[Task, str], "gr.components.Component"]
    value: Callable[[Task, Sequence[str], Mapping[str, Any]], Any]
    moved: str | None = None


def score(task: Task, caption: str) -> "gr.Slider | gr.Number":
    """A slider from the lowest to the highest score, or a number where scores have no range."""
    if task.score_range is None:
        return gr.Number(label=caption, interactive=False)
    low, high = task.score_range
    return gr.Slider(low, high, step=(high - low) / 1000, label=caption, interactive=False, buttons=[])


def tagged_words(task: Task, texts: Sequence[str], answer: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """The words of a text, split at white space, each with its tag; None for O and where there is none."""
    words = zip(texts[0].split(), answer["label"], strict=True)
    return [(f"{word} ", None if tag == "O" else tag) for word, tag in words]


VIEWS: dict[str | None, View] = {
    "bars": View(
        lambda task, caption: gr.Label(label=caption, num_top_classes=len(task.label_names)),
        lambda task, texts, answer: answer["probabilities"],
        "the answer's probability",
    ),
    "labels": View(  # several labels may hold, or none, so none is the heading
        lambda task, caption: gr.Label(
            label=f"{caption}: each label by itself", num_top_classes=len(task.label_names), show_heading=False
        ),
        lambda task, texts, answer: answer["probabilities"],
        "the likeliest label's probability",
    ),
    "score": View(score, lambda task, texts, answer: float(f"{answer['score']:.4g}"), "the score"),
    "tags": View(
        lambda task, caption: gr.HighlightedText(label=caption, show_legend=True, combine_adjacent=False), tagged_words
    ),
    None: View(lambda task, caption: gr.JSON(label=caption), lambda task, texts, answer: answer),
}
"""{`Kind.view`: how answers are shown}; None is for kinds without a view."""


class Tab:
    """One tab: boxes for the texts of a row, and the answers of one or more runs.

    Args:
        pipes: {title: pipeline} of the runs that it shows side by side.
        name: of a task that all of them have; None, all their tasks of single texts.
    """

    def __init__(self, pipes: Mapping[str, MultitaskPipeline], name: str | None = None):
        self.pipes, self.name = pipes, name
        self.columns = own_columns(next(iter(pipes.values())).tasks[name]) if name else ["text"]

    def answer(self, *texts: str) -> list[Any]:
        """The values of a run's components, run after run: what shows its answers, for a single task the words that
        moved the answer, and the answers as the pipeline gives them.

        Raises:
            InputError: a text is empty or too long; the page shows the message.
        """
        if not all(text and text.strip() for text in texts):
            raise InputError("Write a text, then press the button." if len(texts) == 1 else "Write both texts first.")
        check_lengths([[text] for text in texts])
        shown, row = [], texts if len(texts) > 1 else texts[0]
        for pipe in self.pipes.values():
            answers = {self.name: pipe(self.name, row)} if self.name else pipe.all(row)
            for name, answer in answers.items():
                task = pipe.tasks[name]
                shown.append(VIEWS[KINDS[task.kind].view].value(task, texts, answer))
            if self.name:
                shown += highlight(explain(pipe, self.name, row) or [None] * len(texts))
            shown.append(answers[self.name] if self.name else answers)
        return shown

    def build(self, examples: Sequence[Sequence[str]]) -> None:
        """Add the tab's components to the page."""
        with gr.Row():
            options = {"lines": 2, "max_lines": 8, "min_width": 320, "max_length": LONGEST}
            boxes = [gr.Textbox(label=column, **options) for column in self.columns]
        button, note = gr.Button("Answer", variant="primary"), gr.Markdown(elem_classes="note")
        outputs: list = []
        with gr.Row(visible=False) as results:
            for title, pipe in self.pipes.items():
                with gr.Column(min_width=320):
                    outputs += self.build_answers(title, pipe)
        if examples:
            gr.Examples([list(row) for row in examples], boxes, label="Rows to try, from the dev split")

        def respond(*texts: str) -> list[Any]:
            """The error message, whether there are answers to show, and what `answer` gives."""
            try:
                return ["", gr.update(visible=True), *self.answer(*texts)]
            except InputError as error:
                return [str(error), gr.update(visible=False), *[gr.skip()] * len(outputs)]

        triggers = [button.click, *(box.submit for box in boxes)]
        api_name = f"task_{self.name}" if self.name else "all_tasks"
        gr.on(triggers, respond, boxes, [note, results, *outputs], api_name=api_name)

    def build_answers(self, title: str, pipe: MultitaskPipeline) -> "list[gr.components.Component]":
        """Add the components that `answer` fills for a run."""
        outputs = []
        for name in [self.name] if self.name else single_tasks(pipe):
            task, view = pipe.tasks[name], VIEWS[KINDS[pipe.tasks[name].kind].view]
            parts = [title] if self.name else [name] if len(self.pipes) == 1 else [name, title]
            outputs.append(view.component(task, ", ".join(parts)))
            if self.name:
                options = {"show_legend": False, "show_inline_category": False, "visible": view.moved is not None}
                caption = f"red words raise {view.moved}, violet ones lower it"
                outputs += [gr.HighlightedText(label=f"{column}: {caption}", **options) for column in self.columns]
        with gr.Accordion("As the pipeline gives it", open=False):
            return [*outputs, gr.JSON(show_label=False, elem_classes="exact")]


def build_page(runs: Mapping[str, str]) -> "gr.Blocks":
    """The page of one run, or of several side by side; `.launch(**launch_options())` serves it.

    Args:
        runs: {title: run folder, Hub id or `package:NAME/PATH`}. The first also answers the endpoint `/answer`.

    Raises:
        InputError: gradio is missing, there is no such run, or a task takes a text in one run and a pair in the other.
    """
    check_installed("gradio", "demo", "the demo")
    pipes = {title: MultitaskPipeline(name) for title, name in runs.items()}
    for pipe in pipes.values():
        pipe.load()
    tasks = list(dict.fromkeys(name for pipe in pipes.values() for name in pipe.tasks))
    examples = {name: next(filter(None, (find_examples(pipe, name) for pipe in pipes.values())), []) for name in tasks}
    for name in tasks:
        if len({pipe.tasks[name].text_pair is None for pipe in pipes.values() if name in pipe.tasks}) > 1:
            raise InputError(f"task {name!r} takes a text in one run and a pair in the other; show them one at a time")
    title = " and ".join(pipes)
    how_many = "One model" if len(pipes) == 1 else f"{len(pipes)} models side by side"
    note = f"{how_many}, {len(tasks)} task{'s' * (len(tasks) > 1)}. Probabilities are the model's own, not calibrated."
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(f"# {escape(title)}\n\n{note}")
        for name in tasks:
            with gr.Tab(name):
                having = {title: pipe for title, pipe in pipes.items() if name in pipe.tasks}
                Tab(having, name).build(examples[name])
        if several := {title: pipe for title, pipe in pipes.items() if len(single_tasks(pipe)) > 1}:
            with gr.Tab("all tasks"):
                Tab(several).build(examples[single_tasks(next(iter(several.values())))[0]])
        gr.api(endpoint(next(iter(pipes.values()))), api_name="answer")
    return page


def launch_options() -> dict[str, Any]:
    """Arguments of `Blocks.launch`: a theme with the reader's own fonts, so that no other server is asked."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {"theme": gr.themes.Soft(**fonts), "css": CSS, "footer_links": ["api"], "max_file_size": 1}


def endpoint(pipe: MultitaskPipeline) -> Callable[[str, list], list]:
    """The page's own HTTP endpoint, `/answer`, for `gradio_client` and others."""

    def answer(task: str, rows: list) -> list:
        """Answer rows of a task, as `MultitaskPipeline` does: texts, pairs as lists of two texts, or dictionaries."""
        try:
            if not isinstance(rows, list) or len(rows) > MOST:
                raise InputError(f"rows: expected a list of at most {MOST:,} rows")
            check_lengths(plain_texts(pipe.find(task), rows))
            return pipe(task, rows)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answer


def highlight(texts: Sequence[Pieces | None]) -> list[Pieces | None]:
    """The words of a row's texts for gradio, with contributions from -1 to 1: divided by the row's largest."""
    largest = max((abs(value) for pieces in texts for _, value in pieces or () if value), default=1.0)
    return [
        pieces and [(word, None if value is None else value / largest) for word, value in pieces] for pieces in texts
    ]


def check_lengths(texts: Texts) -> None:
    """Raises InputError if a text is longer than LONGEST, since it would keep the model from other requests."""
    longest = max((len(text) for column in texts for text in column), default=0)
    if longest > LONGEST:
        raise InputError(f"A text has {longest:,} characters; at most {LONGEST:,} are answered.")


def single_tasks(pipe: MultitaskPipeline) -> list[str]:
    """The tasks of single texts."""
    return [name for name, task in pipe.tasks.items() if not task.text_pair]


def find_examples(pipe: MultitaskPipeline, name: str) -> list[list[str]]:
    """Texts of a few dev rows of a task, spread over the split; none if the rows are not at hand."""
    place = pipe.run.records.places.get(name) if name in pipe.tasks else None
    rows = None
    with contextlib.suppress(InputError):  # the data are not on this machine
        rows = place and place.load("dev")
    columns = [rows[column][:] for column in text_columns(place.task)] if rows else []
    texts = dict.fromkeys(zip(*columns, strict=True))  # each once
    short = [list(row) for row in texts if all(row) and sum(map(len, row)) <= EXAMPLE_LENGTH]
    return short[:: max(1, len(short) // EXAMPLES)][:EXAMPLES]
