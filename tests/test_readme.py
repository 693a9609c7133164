"""What the pages show, run as it stands but for weights, folders and steps; the flags and tasks of all pages."""

import configparser
import json
import re
from dataclasses import fields
from pathlib import Path

import datasets
import pandas
import pytest
import yaml
from conftest import MINILM, ROOT, run_here

from bert_multitask import MultitaskPipeline, MultitaskTrainingArguments, load_task
from bert_multitask.model.tasks import load_tasks
from bert_multitask.training.arguments import RunArguments
from bert_multitask.training.jobs import SeedArguments
from bert_multitask.training.search_space import TuneArguments

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FEW = 'max_steps=2, logging_steps=1, eval_strategy="no", save_strategy="no", report_to="none"'
HUB = {  # columns, the labels' column, their names
    "dair-ai/emotion": ({"text": ["Love it", "It hurts"], "label": [1, 0]}, "label", ["sadness", "joy", "anger"]),
    "unimelb-nlp/wikiann": (
        {"tokens": [["Anna", "left"], ["No"]], "ner_tags": [[1, 0], [0]]},
        "ner_tags",
        ["O", "B-PER"],
    ),
    "nyu-mll/glue": (
        {"sentence1": ["a", "b"], "sentence2": ["a", "c"], "label": [1, 0]},
        "label",
        ["not_equivalent", "equivalent"],
    ),
}


def examples(page: str, language: str = "python") -> list[str]:
    """The blocks of a page under docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def load_dataset(path: str, name: str | None = None, revision=None, split=("train", "validation")):
    """A few rows with the columns and labels of the data sets that the README loads."""
    columns, label, names = HUB[path]
    kind = datasets.ClassLabel(names=names)
    rows = datasets.Dataset.from_dict(columns)
    rows = rows.cast_column(label, datasets.List(kind) if isinstance(columns[label][0], list) else kind)
    return datasets.DatasetDict(dict.fromkeys(split, rows))


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory, tiny_bert):
    """A run on the shipped sample, where the pages have runs/quickstart."""
    folder = tmp_path_factory.mktemp("quickstart")
    few = ["--model_name_or_path", tiny_bert, "--max_steps", 1, "--report_to", "none", "--disable_tqdm", "true"]
    with pytest.MonkeyPatch.context() as patch:
        assert run_here(patch, "quickstart", *few, "--output_dir", folder / "run", recipe="train") == 0
    return folder / "run"


def test_the_readme_names_every_extra():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert [extra for extra in setup["options.extras_require"] if f"`{extra}`" not in README] == []


def test_the_readme_from_datasets_to_a_push_and_its_answers(monkeypatch, tmp_path, tiny_bert, capsys):
    """What the Hub gets is tested in tests/training/test_hub.py."""
    pushed = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("bert_multitask.training.trainer.open_repo", lambda name, *_: name)
    monkeypatch.setattr("bert_multitask.training.trainer.push_folder", lambda *given: pushed.append(given[:2]))
    train, predict = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "google-bert/bert-base-uncased" in train and "learning_rate=2e-5" in train
    exec(train.replace("google-bert/bert-base-uncased", tiny_bert).replace("learning_rate=2e-5", FEW), {})
    capsys.readouterr()
    assert pushed == [("runs/desk", "me/desk")]
    exec(predict.replace("me/desk", "runs/desk"), {})
    answers = capsys.readouterr().out
    assert answers.count("'probabilities'") == 5 and "'B-PER'" in answers and "'equivalent'" in answers


def test_the_readmes_yaml_is_its_python(monkeypatch, tmp_path, tiny_bert, capsys):
    """Its fields, and what it trains: a model that answers a file with the columns of the data sets."""
    block = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)[1]
    tasks = [load_task(task, named=False) for task in yaml.safe_load(block)["tasks"]]
    assert [task.name for task in tasks] == ["feeling", "names", "same"]
    for task in tasks:
        columns, label, _ = HUB[task.hub.path]
        assert {task.hub.text, task.hub.text_pair, task.hub.label} - {None} == set(columns) and task.hub.label == label
        (line,) = re.findall(rf' Task\("{task.name}", "{task.kind}".*', README)
        assert f"epochs={task.epochs}" in line and f'text="{task.hub.text}"' in line
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    Path("desk.yaml").write_text(block.replace("google-bert/bert-base-uncased", tiny_bert), encoding="utf-8")
    train, predict, _ = re.search(r"```sh\n(bert-multitask train .*?)```", README, re.DOTALL)[1].splitlines()
    assert train.startswith("bert-multitask train desk.yaml ")
    assert run_here(monkeypatch, "desk.yaml", "--max_steps", 2, "--report_to", "none", recipe="train") == 0
    header, row = "text,sentence,tokens,sentence1,sentence2", "It hurts,Love it,Anna left,a,b"
    Path("new.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    assert run_here(monkeypatch, *predict.split()[2:], recipe="predict") == 0
    found = pandas.read_parquet("answers/predictions.parquet").iloc[0]
    pipe = MultitaskPipeline("runs/desk")
    for task, given in {"feeling": "It hurts", "same": ("a", "b")}.items():
        expected = list(pipe(task, given)["probabilities"].values())
        assert list(found[f"{task}_probabilities"]) == pytest.approx(expected, abs=1e-5)
    assert len(found["names_label"].split()) == 2


def test_the_reference_runs(monkeypatch, tmp_path, tiny_bert, quickstart, capsys):
    """Every block, in order."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for example in examples("reference.md"):
        for before, after in (("runs/quickstart", str(quickstart)), (MINILM, tiny_bert), ("max_steps=20", FEW)):
            example = example.replace(before, after)
        exec(example, names)
    printed = capsys.readouterr().out
    assert "2 steps of up to 32 rows" in printed and "this model has no task 'weather'" in printed
    assert names["penalty"] > 0 and (tmp_path / "report" / "report.html").exists()


@pytest.mark.parametrize("page", ["add_task", "export", "lora", "memory", "metric"])
def test_how_to(page, monkeypatch, tmp_path, tiny_bert, quickstart, capsys):
    from bert_multitask.evaluation.metrics import METRICS

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bert_multitask.evaluation.metrics.METRICS", dict(METRICS))
    names = {}
    before = {name: weight.clone() for name, weight in load(quickstart).items()}
    for example in examples(f"howto/{page}.md"):
        example = example.replace("runs/quickstart", str(quickstart)).replace(MINILM, tiny_bert)
        exec(example.replace("* 20", "* 2"), names)
    if page == "add_task":
        after = load("runs/with_topic")
        assert all((after[name] == weight).all() for name, weight in before.items())
        assert after.keys() - before.keys() == {"heads.topic.classifier.weight", "heads.topic.classifier.bias"}
    else:
        printed = {"export": "'label'", "lora": "per_task", "memory": "eval_spam_accuracy", "metric": "0."}
        assert printed[page] in capsys.readouterr().out


def test_the_page_of_onnx(monkeypatch, tmp_path, quickstart, capsys):
    """The command and the lines that use what it writes; 8-bit weights move these probabilities by less than 1 %."""
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    block = examples("howto/onnx.md", "sh")[0].replace("\\\n", "")
    (command,) = re.findall("bert-multitask export (.*)", block)
    assert run_here(monkeypatch, *command.replace("RUN", str(quickstart)).split(), recipe="export") == 0
    written = [tmp_path / "sst_onnx" / name for name in ("model.onnx", "model_quantized.onnx")]
    assert written[1].stat().st_size < 0.4 * written[0].stat().st_size
    names = {}
    exec(examples("howto/onnx.md")[0], names)
    best = [names["names"][str(row.argmax())] for row in names["probabilities"]]
    assert re.findall(r"^(\w.*) 0\.\d+$", capsys.readouterr().out, re.MULTILINE) == best
    answers = MultitaskPipeline(quickstart)("sst", ["The plot is superb.", "Dull."])
    for row, answer in zip(names["probabilities"], answers, strict=True):
        assert row == pytest.approx(list(answer["probabilities"].values()), abs=0.01)


def load(folder) -> dict:
    """The weights of a run."""
    from safetensors.torch import load_file

    return load_file(f"{folder}/model.safetensors")


def test_the_notebook_runs_from_top_to_bottom(monkeypatch, tmp_path, tiny_bert):
    """On fewer messages and a tiny model; it is kept without outputs."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs" / "first_steps.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    names = {}
    for cell in cells:
        exec(
            "".join(cell["source"]).replace(MINILM, tiny_bert).replace("make(240), make(60)", "make(20), make(9)"),
            names,
        )
    assert sorted(names["answers"]) == ["mood", "names", "topic"] and (tmp_path / "runs" / "first_steps").is_dir()


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"^[A-Z]{4,}$|TODO|XXX", README, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_flags_named_in_the_pages_exist(page):
    other = {"config_file", "num_processes", "num_cpu_threads_per_process", "quiet", "help", "logdir", "option"}
    other |= {f"no_{field.name}" for field in fields(MultitaskTrainingArguments) if field.default is True}
    kinds = (RunArguments, MultitaskTrainingArguments, SeedArguments, TuneArguments)
    flags = {field.name for arguments in kinds for field in fields(arguments)}
    for recipe in [*(ROOT / "recipes").glob("*.py"), *(ROOT / "bert_multitask" / "commands").glob("*.py")]:
        other |= set(re.findall(r'"--([a-z0-9_]+)"', recipe.read_text()))
    other |= set(re.findall(r'^    "([a-z_]+)": \{', (ROOT / "recipes" / "benchmark.py").read_text(), re.MULTILINE))
    options = (ROOT / "tests" / "faults" / "conftest.py").read_text()
    other |= set(re.findall(r'^    "([a-z_]+)": \(', options, re.MULTILINE))
    assert set(re.findall(r"--([a-z0-9_]+)", page.read_text(encoding="utf-8"))) <= flags | other


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tasks_in_the_pages_are_tasks(page):
    """`add_task` names those of a run that it describes in words."""
    urgent = {"name": "urgent", "kind": "binary", "label_names": ["no", "yes"]}
    group = {"name": "tickets", "labels": [{"name": "stars", "kind": "regression"}]}
    known = load_tasks([urgent, group]) if page.stem == "add_task" else {}
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        tasks = yaml.safe_load(block).get("tasks", [])
        assert len(load_tasks(tasks, named=False, known=known)) >= len(tasks)
