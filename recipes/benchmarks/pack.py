"""What a machine without network needs beside a checkout to run `benchmark.py gpu`.

    python recipes/benchmark.py pack --data_dir DATA --output_dir KIT --wheels datasets evaluate dill multiprocess

There, unpack each wheel into one folder, `python -m zipfile -e KIT/wheels/WHEEL SITE`, and run the benchmark in the
checkout with `PYTHONPATH=.:SITE --model_name_or_path KIT/model --data_dir KIT/data`. The package is not installed.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModel

from bert_multitask import InputError
from bert_multitask.data.tokens import load_tokenizer
from bert_multitask.model.configuration import resolve_folder
from bert_multitask.model.tasks import TASKS

from .rig import NAMES

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 64 * 2**20  # bytes
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def pack(options) -> dict:
    """A folder of weights (as fp16), data and wheels for a machine without network"""
    if not options.output_dir:
        raise InputError("--output_dir is required: the folder to pack into")
    folder = Path(options.output_dir)
    for part in ("model", "data", "wheels"):
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir(parents=True)
    # Half the size; `from_pretrained` makes fp32 of them again.
    model = AutoModel.from_pretrained(resolve_folder(options.model_name_or_path), dtype=torch.float16)
    model.save_pretrained(folder / "model")
    load_tokenizer(options.model_name_or_path, model.config.vocab_size).save_pretrained(folder / "model")
    for file in [file for name in NAMES for file in TASKS[name].files.values()]:
        try:
            shutil.copyfile(Path(resolve_folder(options.data_dir), file), folder / "data" / file)
        except OSError as error:
            raise InputError(f"--data_dir {options.data_dir}: {file} cannot be copied ({error.strerror})") from error
    if options.wheels:
        download(options.wheels, options.python_version, folder / "wheels")
    sizes = {part: size(folder / part) for part in ("model", "data", "wheels")}
    if sum(sizes.values()) > LIMIT:
        raise InputError(f"{folder} has {sum(sizes.values()):,} bytes; expected at most {LIMIT:,}")
    return {f"{part}, MB": value / 1e6 for part, value in sizes.items()}


def download(packages: list[str], python_version: str, folder: Path) -> None:
    """Wheels of packages, without what they depend on, in the versions of constraints.txt."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--implementation", "cp", "--python-version", python_version, "--dest", str(folder)]
    command += [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    command += ["--constraint", str(ROOT / "constraints.txt"), *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"--wheels {' '.join(packages)}: {done.stderr.strip().splitlines()[-1]}")


def size(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
