"""The model card: what a checkpoint can do, how well, how it came about, and how it is used."""

import html
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from .configuration import MultitaskBertConfig
from .kinds import KINDS
from .stock import stock_class
from .tasks import TASKS, Task

SCORES = "## Scores on the dev rows"
# Examples of rows. They are ours: the rows of a run may be private.
TEXT, PAIR = "The plot is superb.", ("A dog sleeps.", "A hound is taking a nap.")
TAGS = ["multi-task-learning", "bert_multitask"]
# From the paper's ethics statement (section 8).
COURSE_LIMITS = """\
The rows that `sst`, `quora`, `sts` and `cfimdb` name are English, and so is what this model understands. They come from
film reviews, news and questions on the web: people who write little there, or in other languages, are hardly in them.
Quora asks its members to be 13 or older, and its questions are those of people who like to ask. Sentiment and "the same
question" are theirs; elsewhere they may be others'. More languages (a multilingual BERT) and more varied pairs, such as
PAWS-Wiki, would help."""
LIMITS = """\
The model repeats what its training rows and its encoder's pre-training texts contain, their prejudices included. Its
probabilities are not calibrated. Where training kept the best of several checkpoints, it was the best on the dev
rows, which flatters their scores a little. Do not let it decide about people on its own."""


def model_card(
    tasks: Mapping[str, Task],
    config: MultitaskBertConfig,
    repo_id: str | None = None,
    base_model: str | None = None,
    scores: Mapping[str, tuple[float, float | None, float | None]] | None = None,
    settings: Mapping[str, object] | None = None,
    plan: str | None = None,
    data: Mapping[str, Mapping[str, Mapping]] | None = None,
    metrics: Mapping[str, str] | None = None,
    datasets: Sequence[str] | None = None,
    license: str | None = None,
    language: str | Sequence[str] | None = None,
) -> str:
    """Write a card, with metadata that the Hub reads (`model-index`); what is not given is left out.

    Args:
        repo_id: where it will be; by default the card says PATH.
        base_model: what training started from. A Hub id is named; a local path is omitted, so that it cannot leak.
        scores: {task: (dev score, lower and upper bound of its 95 % interval or None)}; also of "overall".
        settings: of the training, for a table; `seed` is among them.
        plan: the schedule as a table.
        data: {task: {split: {"rows": …, "sha256": …}}}; also "used", how many of the rows are trained on, scored or
            predicted.
        metrics: {task: its metric in words}, and what "overall" is; by default the metrics' names.
        datasets: Hub ids of the data sets that the rows came from.
        license: of the model, by the Hub's name of it.
        language: codes of the languages that it understands.

    Returns:
        Markdown below YAML.
    """
    base_model = base_model if is_hub_id(base_model) else None
    results = model_index(tasks, scores or {}, settings or {}) or None
    types = Counter(KINDS[task.kind].task_type(task) for task in tasks.values())
    metadata = ModelCardData(
        language=language,
        license=license,
        model_name=(repo_id or "multitask BERT").split("/")[-1] if results else None,
        library_name="transformers",
        base_model=base_model,
        tags=[config.stock().model_type, *TAGS],
        datasets=list(dict.fromkeys(datasets or ())) or None,
        pipeline_tag=max(types, key=types.get),  # the Hub takes one: that of most tasks
        eval_results=results,
        widget=[widget(task) for task in tasks.values()],
    )
    parts = [
        "# " + ", ".join(tasks) + ": one model",
        describe_model(tasks, config, base_model),
        "## Use\n\n" + describe_use(tasks, config, repo_id or "PATH"),
    ]
    if scores:
        parts.append(f"{SCORES}\n\n" + score_table(tasks, scores, settings or {}, metrics or {}))
    if settings:
        parts.append("## Training\n\n" + table(("setting", "value"), settings.items()))
    if plan:
        parts.append(f"The schedule, in optimizer steps:\n\n```text\n{plan}\n```")
    if data:
        rows = [
            (name, split, describe_count(part["rows"], part.get("used")), part["sha256"])
            for name, splits in data.items()
            for split, part in splits.items()
        ]
        header = ("task", "split", "rows", "SHA-256 of texts and labels, its first 16 digits")
        parts.append("## Data\n\n" + table(header, rows))
    limits = [COURSE_LIMITS, LIMITS] if TASKS.keys() & tasks.keys() else [LIMITS]
    parts += ["## Limits and bias", *limits]
    return f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def describe_count(read: int, used: int | None) -> str:
    """How many rows are used, and of how many that were read, where some have no label or no text."""
    return f"{read:,}" if used in (None, read) else f"{used:,} of {read:,} (the others have no label or no text)"


def add_picture(text: str, file: str) -> str:
    """A card's text with a picture of the scores above their table; as it is where it has none."""
    return text.replace(f"{SCORES}\n\n", f"{SCORES}\n\n![The scores with their 95 % intervals]({file})\n\n", 1)


def is_hub_id(name: str | None) -> bool:
    """Whether a name is a Hub id, and not a local folder."""
    if name is None or os.path.exists(name):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def model_index(tasks: Mapping[str, Task], scores: Mapping, settings: Mapping) -> list[EvalResult]:
    """The scores of the tasks, as the Hub's leaderboards read them."""
    seed = {"seed": settings["seed"]} if "seed" in settings else {}
    results = []
    for name, task in tasks.items():
        if name not in scores:
            continue
        value, low, high = scores[name]
        interval = {"confidence_interval_95": [round(low, 4), round(high, 4)]} if is_interval(low, high) else {}
        results.append(
            EvalResult(
                task_type=KINDS[task.kind].task_type(task),
                dataset_type=name,
                dataset_name=name,
                dataset_split="dev",
                metric_type=task.metric,
                metric_value=round(value, 4),
                metric_args=(interval | seed) or None,
            )
        )
    return results


def describe_model(tasks: Mapping[str, Task], config: MultitaskBertConfig, base_model: str | None) -> str:
    """What the model is, in a sentence or two, and its tasks."""
    name = stock_class(config.stock()).__name__
    encoders = f"A `{name}` for each task" if config.encoder_sharing == "per_task" else f"One `{name}` for all tasks"
    start = f", fine-tuned from [{base_model}](https://huggingface.co/{base_model})" if base_model else ""
    size = f"{config.num_hidden_layers} layers, {config.hidden_size} wide"
    pairs = {"joint": "two texts as one sequence", "separate": "two texts, each on its own"}
    rows = []
    for task in tasks.values():
        texts = pairs[task.pair_encoding or config.pair_encoding] if task.text_pair else "one text"
        rows.append((task.name, task.kind, texts, KINDS[task.kind].describe_output(task)))
    each = "an adapter and a head" if config.encoder_sharing == "adapters" else "a head"
    one = " and one adapter" if config.lora and config.encoder_sharing == "shared" else ""
    text = f"{encoders} ({size}){one}{start}, with {each} for each task."
    if config.lora:
        text += " It needs `pip install peft`."
    return f"{text}\n\n{table(('task', 'kind', 'input', 'output'), rows)}"


def describe_use(tasks: Mapping[str, Task], config: MultitaskBertConfig, name: str) -> str:
    """The lines that use it, without the package and with it: of each form of task one, with decoded labels."""
    shown = list({(task.kind, task.text_pair is None): task for task in reversed(tasks.values())}.values())[::-1]
    encoder, trust = f'AutoModel.from_pretrained("{name}")` is a stock `{stock_class(config.stock()).__name__}`', ""
    if config.model_type != config.stock().model_type:  # a stock model could not read it
        plain_model = "model.merge_adapters()" if config.lora else "model"
        encoder, trust = f'{plain_model}.encoder("{shown[0].name}")`', ", trust_remote_code=True"
    plain = "\n".join(plain_lines(task, config) for task in shown)
    calls = "\n".join(
        f'print(pipe("{task.name}", [{example(task)}]))  # of each row {" and ".join(KINDS[task.kind].columns(task))}'
        for task in shown
    )
    return f"""\
Every head, by the code that lies beside the weights, with the labels' names:

```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("{name}", trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained("{name}"{trust})
{plain}
```

With the package `bert_multitask`, no remote code:

```python
from bert_multitask import MultitaskBertModel, MultitaskPipeline
from transformers import AutoTokenizer

model = MultitaskBertModel.from_pretrained("{name}")
pipe = MultitaskPipeline(model, AutoTokenizer.from_pretrained("{name}"))
{calls}
```

The encoder alone: `{encoder}."""


def plain_lines(task: Task, config: MultitaskBertConfig) -> str:
    """The lines that answer a task with Transformers alone."""
    separate = task.text_pair is not None and (task.pair_encoding or config.pair_encoding) == "separate"
    texts, kind = example(task, task.prompt, *[task.prompt] * separate).strip("()"), KINDS[task.kind]
    inputs = f'tokenizer({texts}, return_tensors="pt")'
    if kind.words:
        inputs = f'tokenizer({texts}.split(), is_split_into_words=True, return_tensors="pt")'
    if separate:
        pair = f'tokenizer([{texts}], padding=True, return_tensors="pt")'
        inputs = f"{{key: value[None] for key, value in {pair}.items()}}"
    names = f'names = model.tasks["{task.name}"].label_names\n' if task.label_names else ""
    return f'logits = model("{task.name}", **{inputs}).logits[0]\n{names}print({kind.decoded})'


def example(task: Task, *prompts: str) -> str:
    """An example of a row, as Python writes it, with what is put before its texts."""
    texts = PAIR if task.text_pair else (TEXT,)
    shown = ", ".join(json.dumps(a + b) for a, b in itertools.zip_longest(prompts, texts, fillvalue=""))
    return f"({shown})" if task.text_pair else shown


def widget(task: Task) -> dict[str, object]:
    """An example of a row, as the Hub's widgets have it."""
    if task.text_pair and KINDS[task.kind].task_type(task) == "sentence-similarity":
        row: dict[str, object] = {"source_sentence": PAIR[0], "sentences": [PAIR[1]]}
    else:
        row = {"text": PAIR[0], "text_pair": PAIR[1]} if task.text_pair else {"text": TEXT}
    return {"example_title": task.name} | row


def is_interval(low: float | None, high: float | None) -> bool:
    """Whether bounds are those of an interval: not None, nan, or the same."""
    return low is not None and low < high


def score_table(tasks: Mapping[str, Task], scores: Mapping, settings: Mapping, metrics: Mapping[str, str]) -> str:
    """The scores with their intervals, and what the intervals mean."""
    rows, note = [], f"One run, seed {settings['seed']}. " if "seed" in settings else ""
    for name, (value, low, high) in scores.items():
        metric = metrics.get(name, tasks[name].metric if name in tasks else "mean")
        rows.append((name, metric, f"{value:.4f}", f"{low:.4f} – {high:.4f}" if is_interval(low, high) else ""))
    if any(row[-1] for row in rows):
        note += (
            "The intervals are percentiles of bootstrap resamples of the rows: they say how sure the score of this "
            "model is, not how much another seed would change."
        )
    return f"{table(('task', 'metric', 'score', '95 % interval'), rows)}\n\n{note}".rstrip()


def table(header: Sequence, rows: Iterable[Sequence]) -> str:
    """A Markdown table; its cells are shown as they are."""
    cells = [[escape(str(getattr(cell, "value", cell))) for cell in line] for line in [header, *rows]]
    cells.insert(1, ["---"] * len(header))
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def escape(text: str) -> str:
    """A text that Markdown shows as it is, on one line: names of labels may hold tags, links or line breaks."""
    return html.escape(re.sub(r"([\\`*\[\]|~$])", r"\\\1", " ".join(text.split())), quote=False)
