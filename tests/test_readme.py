"""The README's Python, run as it stands but for the folders and the number of steps; flags and YAML of all pages."""

import re
from dataclasses import fields

import pytest
import yaml
from conftest import MINILM, ROOT

from bert_multitask import MultitaskBertModel, MultitaskTrainingArguments, load_task
from bert_multitask.training.arguments import RunArguments
from bert_multitask.training.search_space import TuneArguments

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ASK, USE, TRAIN = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_using_a_trained_model(tmp_path, tokenizer, capsys):
    model = MultitaskBertModel.from_pretrained(MINILM, tasks=["sst", "quora", "sts"])
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    names = {}
    exec(ASK.replace("runs/quickstart", str(tmp_path)), names)
    exec(USE.replace("runs/quickstart", str(tmp_path)), names)
    assert names["logits"].shape == (1,)
    assert [line.count("'probabilities'") for line in capsys.readouterr().out.splitlines()] == [2, 0, 1]


def test_training_from_python(tmp_path, capsys):
    few = 'max_steps=2, eval_strategy="no", save_strategy="no", report_to="none"'
    assert "max_steps=50" in TRAIN
    exec(TRAIN.replace("runs/mine", str(tmp_path)).replace("max_steps=50", few), {})
    assert "2 steps of up to 32 rows" in capsys.readouterr().out


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"^[A-Z]{4,}$|TODO|XXX", README, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_flags_named_in_the_pages_exist(page):
    other = {"config_file", "num_processes", "num_cpu_threads_per_process", "quiet", "help", "logdir", "option"}
    other |= {f"no_{field.name}" for field in fields(MultitaskTrainingArguments) if field.default is True}
    kinds = (RunArguments, MultitaskTrainingArguments, TuneArguments)
    flags = {field.name for arguments in kinds for field in fields(arguments)}
    for recipe in [*(ROOT / "recipes").glob("*.py"), *(ROOT / "bert_multitask" / "commands").glob("*.py")]:
        other |= set(re.findall(r'"--([a-z0-9_]+)"', recipe.read_text()))
    other |= set(re.findall(r'^    "([a-z_]+)": \{', (ROOT / "recipes" / "benchmark.py").read_text(), re.MULTILINE))
    options = (ROOT / "tests" / "faults" / "conftest.py").read_text()
    other |= set(re.findall(r'^    "([a-z_]+)": \(', options, re.MULTILINE))
    assert set(re.findall(r"--([a-z0-9_]+)", page.read_text(encoding="utf-8"))) <= flags | other


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tasks_in_the_pages_are_tasks(page):
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        assert all(load_task(task).name for task in yaml.safe_load(block).get("tasks", []))
