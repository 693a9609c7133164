"""The checkpoints in a run folder: which there are, whether one is whole, and which to resume from."""

import filecmp
import json
import pickle
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch.distributed.checkpoint import metadata as sharded
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.utils import logging

from ..model.errors import InputError
from .folder_lock import remove

logger = logging.get_logger(__name__)

# What a run goes on from -> the files that hold it, one of which must be there. DeepSpeed has folders global_step*.
NEEDED = {
    "weights": ["model*.safetensors*", "adapter_model*.safetensors"],
    "optimizer's state": ["optimizer*", "global_step*"],
    "learning rate's schedule": ["scheduler.pt", "global_step*"],
    "random generators' state": ["rng_state*.pth"],
}
# Classes in the files of DeepSpeed's optimizers, which are plain data.
DEEPSPEED = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


def list_checkpoints(folder: Path) -> dict[int, Path]:
    """{step: `checkpoint-STEP`} of a run folder, in the order of steps; another name is no checkpoint's."""
    named = [(re.fullmatch(r"checkpoint-([0-9]+)", path.name), path) for path in folder.glob("checkpoint-*")]
    return dict(sorted((int(match[1]), path) for match, path in named if match and path.is_dir()))


def find_checkpoint(folder: Path, name: str, best: bool = False) -> Path | None:
    """The checkpoint to resume from; None, with a warning, where the run was stopped before its first.

    Without `trainer_state.json`, which is written last, a checkpoint was cut off while it was saved. One that is
    damaged in another way is passed over, with a warning, for the last that is whole.

    Args:
        name: "last", or the folder of one checkpoint.
        best: whether training ends with the weights of the best checkpoint, which then must be whole, too.

    Raises:
        InputError: the named checkpoint is not the run's or is damaged, none of several is whole, or the best so far is
            not.
    """
    saved = [path for path in list_checkpoints(folder).values() if (path / TRAINER_STATE_NAME).is_file()]
    # All checkpoints of a run hold the same files. Their code and card are not read to go on.
    files = {file.name for path in saved for file in path.iterdir() if file.is_file()}
    files = {file for file in files if not file.endswith((".py", ".md"))}
    candidates = reversed(saved)
    if name != "last":
        candidates = [Path(name)]
        if not Path(name, TRAINER_STATE_NAME).is_file():
            raise InputError(f"--resume_from_checkpoint {name}: no checkpoint; expected a folder checkpoint-N")
        if Path(name).resolve().parent != folder.resolve():
            raise InputError(f"--resume_from_checkpoint {name}: not a checkpoint of the run in {folder}")
    damage = []
    for checkpoint in candidates:
        try:
            check_checkpoint(checkpoint, files)
        except InputError as error:
            damage.append(error)
            continue
        if damage:
            logger.warning(f"{damage[0]}; training goes on from {checkpoint}, the last that is whole")
        check_best(checkpoint, best)
        return checkpoint
    if damage:
        raise damage[0]
    logger.warning(f"{folder} has no checkpoint yet; training starts from the beginning")
    return None


def check_best(checkpoint: Path, best: bool) -> None:
    """Check the best checkpoint so far, with whose weights training may end.

    Raises:
        InputError: it is damaged; the message names the file.
    """
    step = json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes()).get("best_global_step")
    if best and step and (folder := checkpoint.with_name(f"checkpoint-{step}")) != checkpoint:
        check_checkpoint(folder)


def remove_checkpoints(run: Path) -> None:
    """Remove a run's checkpoints, and the best weights of each task; its history stays."""
    for folder in [*list_checkpoints(run).values(), run / "_best"]:
        shutil.rmtree(folder, ignore_errors=True)


def remove_state(folder: Path) -> None:
    """Remove what only a run that goes on needs of a checkpoint, whose weights can still be loaded. DeepSpeed's folders
    stay, as they hold weights too."""
    weights = ("momentum_teacher.safetensors", "weights_in_training.safetensors")
    for pattern in ("optimizer*", "scheduler.pt", "scaler.pt", "rng_state*.pth", *weights):
        remove(folder.glob(pattern))


def is_copy(checkpoint: Path, run: Path) -> bool:
    """Whether the files of a checkpoint's weights are those of the run folder, byte by byte."""
    names = [file.name for pattern in NEEDED["weights"] for file in checkpoint.glob(pattern)]
    # By default Python takes files of the same size and time as equal.
    equal = filecmp.cmpfiles(checkpoint, run, names, shallow=False)[0]
    return bool(names) and equal == names


def check_checkpoint(folder: Path, files: Iterable[str] = ()) -> None:
    """Check that a checkpoint is whole and safe to load: unpickling anything but tensors and plain data could run code.

    Args:
        files: names of files that it must have besides what is NEEDED to go on.

    Raises:
        InputError: a file is missing, is cut off, or holds more than tensors and plain data; the message names it.
    """
    for what, patterns in NEEDED.items():
        if not any(file for pattern in patterns for file in folder.glob(pattern)):
            raise InputError(
                f"--resume_from_checkpoint {folder}: the {what} ({patterns[0]}) is not there; name another checkpoint "
                "of the run (a finished run keeps none to resume from, nor does --save_only_model)"
            )
    if missing := [file for file in sorted(files) if not (folder / file).exists()]:
        raise InputError(
            f"--resume_from_checkpoint {folder}: {missing[0]} is not there, which the run's other checkpoints have; "
            "name another checkpoint of the run"
        )
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            check_file(file)
        except Exception as error:  # damage shows in a dozen ways
            raise InputError(
                f"--resume_from_checkpoint {folder}: {file.relative_to(folder)} is damaged, or not to be trusted "
                f"({str(error).partition(chr(10))[0]}); name another checkpoint of the run"
            ) from error


def check_file(file: Path) -> None:
    """Read a file of a checkpoint; whatever is wrong with it raises an exception, and no code in it runs."""
    if file.suffix == ".json":
        json.loads(file.read_bytes())
    elif file.suffix == ".safetensors":
        with safe_open(file, "pt"):
            pass
    elif file.name == ".metadata":  # of weights in pieces, which PyTorch unpickles without a check
        with file.open("rb") as stream:
            PlainUnpickler(stream).load()
    elif file.suffix in (".pt", ".pth", ".bin"):
        with safe_globals():  # NumPy's arrays, which the random states have
            try:
                torch.load(file, map_location="cpu", mmap=True, weights_only=True)  # mapped, so nothing is copied
            except pickle.UnpicklingError:
                unknown = set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
                if not unknown or not unknown <= DEEPSPEED:
                    raise


class PlainUnpickler(pickle.Unpickler):
    """Reads the description of weights in pieces: PyTorch's classes of plain data, and no others."""

    ALLOWED = {
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
        ("pathlib", "WindowsPath"),
        ("pathlib._local", "PosixPath"),  # as Python 3.13 names it
        ("pathlib._local", "WindowsPath"),
        ("torch", "Size"),
        ("torch", "device"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
        ("torch.serialization", "_get_layout"),
    }

    def find_class(self, module: str, name: str):
        """The class of that name, where it is allowed."""
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        is_described = module == sharded.__name__ == getattr(getattr(sharded, name, None), "__module__", None)
        if not (is_dtype or is_described or (module, name) in self.ALLOWED):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)
