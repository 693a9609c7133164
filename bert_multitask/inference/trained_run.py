"""A trained run, opened by its name: its configuration, tasks, tokenizer and model, and what its folder records."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..data.rows import HANDOUT, load_rows
from ..data.tokens import load_tokenizer
from ..model.configuration import MultitaskBertConfig, resolve_folder
from ..model.errors import InputError, explained
from ..model.modeling import MultitaskBertModel
from ..model.tasks import Task, load_tasks
from ..training.run_folder import read_run


class Place(NamedTuple):
    """Where a task's rows are, as far as that is known: a task with `files` or `hub`, the folder of the files, and the
    `run.json` that says so."""

    task: Task
    data_dir: str | None
    record: Path | None = None

    @property
    def is_known(self) -> bool:
        """Whether the rows can be read."""
        return self.data_dir is not None if self.task.files else self.task.hub is not None

    def load(self, split: str) -> Dataset | None:
        """The clean rows of a split, with or without labels; None where the task has no such split, or nothing says
        where its rows are."""
        if not self.is_known:
            return None
        return load_rows(self.task, self.data_dir or "", splits=[split], labelled=()).get(split)


class Records(NamedTuple):
    """The records of a run or an ensemble; of anything else, such as a checkpoint from the Hub, there are none.

    Attributes:
        folder: where they are.
        run: all of `run.json` (see `read_run`); None without one.
        ensemble: all of `ensemble.json`; None without one.
        places: {task: where its rows are}, as the run says, or the first member of the ensemble that has the task.
    """

    folder: Path
    run: dict | None
    ensemble: dict | None
    places: dict[str, Place]

    @classmethod
    def read(cls, folder: Path, within: Sequence[Path] = ()) -> Self:
        """Read the records in a folder.

        Args:
            folder: of a run, an ensemble or tables; it need not exist.
            within: the folders of the ensembles whose member it is.

        Raises:
            InputError: one is damaged.
        """
        run, ensemble, path = read_run(folder), None, folder / "ensemble.json"
        damage = (OSError, ValueError, TypeError, RecursionError)
        with explained(f"{path}: is damaged", *damage, hint="combine the runs again"):
            if path.is_file():
                ensemble = dict(json.loads(path.read_bytes()))
        places = {}
        if run is not None:
            origin = run["data_dir"] or HANDOUT, folder / "run.json"
            places = {name: Place(task, *origin) for name, task in load_tasks(run["tasks"]).items()}
        elif ensemble is not None:
            for member in map(Path, map(resolve_folder, ensemble.get("members", ()))):
                if member not in (folder, *within):
                    places = cls.read(member, (*within, folder)).places | places
        return cls(folder, run, ensemble, places)


@dataclass(frozen=True)
class TrainedRun:
    """A trained checkpoint and the records of its run. `TrainedRun.open` makes one.

    Attributes:
        name: run folder, Hub id or `package:NAME/PATH`.
        config: of the model.
        tasks: {name: task} as trained; where their rows are is not said.
        records: what `run.json` says, and where it says that the rows are.
        max_length: tokens that a row may have, as `run.json` says, or without one the tokenizer.
    """

    name: str
    config: MultitaskBertConfig
    tasks: dict[str, Task]
    records: Records
    max_length: int

    @classmethod
    def open(cls, name: str) -> Self:
        """Read all but the weights.

        Raises:
            InputError: there is no such checkpoint, it has no heads, or its files are damaged.
        """
        with explained(f"{name}: its config.json is damaged"):
            config = MultitaskBertConfig.from_pretrained(name)
        if not config.tasks:
            raise InputError(f"{name} is an encoder without heads; expected a trained run")
        with explained(f"{name}: its config.json is damaged", InputError):
            tasks = load_tasks(config.tasks)
        records = Records.read(Path(resolve_folder(name)))
        longest = records.run["max_length"] if records.run else load_tokenizer(name, config.vocab_size).model_max_length
        max_length = min(longest, config.max_position_embeddings)
        return cls(name, config, tasks, records, max_length)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return load_tokenizer(self.name, self.config.vocab_size)

    def load_model(self) -> MultitaskBertModel:
        """The model, on the CPU."""
        with explained(f"{self.name}: cannot be loaded"):
            return MultitaskBertModel.from_pretrained(self.name)
