"""The runs that are killed: their layouts, and what must be the same as in an uninterrupted run."""

import json
import re
import shutil
from pathlib import Path

import torch
from conftest import MINILM, SIZE, write_course
from transformers import AutoTokenizer, BertConfig, BertModel

from bert_multitask.model.configuration import resolve_folder

from .forks import Ended, Forked, Moment

ROWS = (23, 30, 19)  # of sst, quora and sts: no whole number of batches
FLAGS = ["--task_epochs", '{"sst": 2, "quora": 1, "sts": 2}', "--max_length", 32, "--report_to", "none"]
FLAGS += ["--disable_tqdm", "True", "--logging_steps", 1, "--eval_steps", 5, "--save_steps", 5, "--learning_rate", 1e-3]
SMART = ["--smart_weight", '{"sst": 1, "sts": 1}']
BREGMAN = ["--bregman_weight", 0.5, "--smart_share_dropout", "True"]
# As a run's rows follow from its layout, so do what is saved, how often it is evaluated, and which random states count.
LAYOUTS = {
    "shared-joint": [],
    "shared-separate-sequential": ["--pair_encoding", "separate", "--schedule", "sequential"],
    "shared-joint-smart-bregman": [*SMART, *BREGMAN],
    "shared-separate-smart-accumulated": ["--pair_encoding", "separate", *SMART, "--gradient_accumulation_steps", 2],
    "per_task-joint": ["--encoder_sharing", "per_task"],
    "per_task-separate-sequential": [
        *("--encoder_sharing", "per_task", "--pair_encoding", "separate", "--schedule", "sequential")
    ],
    "per_task-joint-smart-bregman": ["--encoder_sharing", "per_task", *SMART, *BREGMAN],
    "per_task-separate-smart-accumulated": [
        *("--encoder_sharing", "per_task", "--pair_encoding", "separate", *SMART),
        *("--gradient_accumulation_steps", 2),
    ],
}
RESUME = "--resume_from_checkpoint"
# What the clock decides; and Trainer's own summary, which adds up the losses since the last resume alone.
NOT_COMPARED = ("runtime", "per_second", "train_loss")


class Stage:
    """What the runs read, and the uninterrupted run of each layout.

    Args:
        work: the folder of it all.
    """

    def __init__(self, work: Path):
        self.work = work
        self.bert, self.data = work / "bert", work / "data"
        if not self.data.exists():
            tokenizer = AutoTokenizer.from_pretrained(resolve_folder(MINILM))
            torch.manual_seed(0)
            BertModel(BertConfig(vocab_size=len(tokenizer), **SIZE)).save_pretrained(self.bert)
            tokenizer.save_pretrained(self.bert)
            write_course(self.data, ROWS)
        self.known: dict[str, Ended] = {}

    def flags(self, layout: str) -> list:
        """The command line of a layout, all but the run folder."""
        places = ["--model_name_or_path", self.bert, "--data_dir", self.data]
        rows = 2 if "--gradient_accumulation_steps" in LAYOUTS[layout] else 4
        return [*places, *FLAGS, "--per_device_train_batch_size", rows, *LAYOUTS[layout]]

    def start(
        self, layout: str, folder: Path, *more, log: str = "", moment: Moment | None = None, **settings
    ) -> Forked:
        """Start a run of a layout in a folder (see `Forked`); its output is in a file beside the folder, whose name may
        have something more to it."""
        argv = [*self.flags(layout), "--output_dir", folder, *more]
        return Forked(argv, folder, folder.with_name(f"{folder.name}{log}.log"), moment, **settings)

    def run(self, layout: str, folder: Path, *more, **settings) -> Ended:
        """Run a layout in a folder to its end, or until it is killed."""
        return self.start(layout, folder, *more, **settings).finish()

    def whole(self, layout: str) -> tuple[Path, Ended]:
        """The folder of a layout's uninterrupted run, and how that ended, with warm caches.

        Two such runs must be alike, or a comparison would mean nothing.
        """
        folder, again = self.work / "whole" / layout, self.work / "whole" / f"{layout}-again"
        if layout not in self.known:
            for path in (again, folder):
                shutil.rmtree(path, ignore_errors=True)
                path.parent.mkdir(exist_ok=True)
                ended = self.known[layout] = self.run(layout, path)
                assert ended.code == 0, ended.printed[-2000:]
            assert not (found := differences(folder, again)), found
        return folder, self.known[layout]


def differences(folder: Path, whole: Path) -> list[str]:
    """What a finished run left otherwise than the uninterrupted one: weights and predictions to the last bit, scores
    and history in every value but NOT_COMPARED."""
    files = [Path("model.safetensors"), *sorted(path.relative_to(whole) for path in whole.glob("predictions/*"))]
    different = [str(file) for file in files if read_bytes(folder / file) != read_bytes(whole / file)]
    for name in ("metrics.json", "history.jsonl"):
        ours, theirs = read_entries(folder / name), read_entries(whole / name)
        if len(ours) != len(theirs):
            different.append(f"{name}: {len(ours)} entries, not {len(theirs)}")
        else:
            keys = {
                key for one, two in zip(ours, theirs, strict=True) for key in one | two if one.get(key) != two.get(key)
            }
            different += [f"{name}: {', '.join(sorted(keys))}"] * bool(keys)
    return different


def read_bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def read_entries(path: Path) -> list[dict]:
    """The objects of a JSON file, or of one of JSON lines, without NOT_COMPARED."""
    if not path.is_file():
        return []
    text = path.read_text()
    entries = list(map(json.loads, text.splitlines())) if path.suffix == ".jsonl" else [json.loads(text)]
    return [
        {key: value for key, value in entry.items() if not any(word in key for word in NOT_COMPARED)}
        for entry in entries
    ]


def last_line(ended: Ended) -> str:
    """What a run printed last."""
    return " ".join(ended.printed.strip().splitlines()[-1:])[-300:]


def complaint(ended, *words: str) -> list[str]:
    """What is wrong with how a run that could not go on ended: it must fail with one line that has the words."""
    lines = [line for line in ended.printed.splitlines() if line.startswith("error: ")]
    if ended.code <= 0:
        return [f"exit {ended.code}: {last_line(ended)}"]
    if "Traceback" in ended.printed or len(lines) != 1:
        return [f"{len(lines)} lines of error, and the last line is: {last_line(ended)}"]
    return [f"no {word!r} in: {lines[0][:300]}" for word in words if not re.search(word, lines[0], re.IGNORECASE)]


def saved_step(folder: Path) -> int:
    """The step of the last whole checkpoint; 0 without one."""
    return max(
        (int(path.parent.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*/trainer_state.json")), default=0
    )
