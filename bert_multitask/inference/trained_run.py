"""Trained runs and files → prediction tables and their scores; where the rows of a run or a table are."""

import json
from collections.abc import Mapping, Sequence

from transformers.utils import logging

from ..model.configuration import MultitaskBertConfig
from ..model.errors import InputError
from ..model.modeling import MultitaskBertModel
from ..model.tasks import TASKS, Task, load_task, load_tasks
from ..training.arguments import RunArguments, parse_json
from ..training.run_folder import read_run

logger = logging.get_logger(__name__)

# What says where a task's rows are and how they are read, which a checkpoint's config.json does not.
SOURCE = ("text", "text_pair", "label", "files", "quoting", "hub")


class TrainedRun:
    """A trained checkpoint, its tasks, and where their rows are.

    Args:
        name: run folder, Hub id or `package:NAME/PATH`.
        tasks: which to predict (see `locate_tasks`); by default all of the run's.
        data_dir: where the rows are (see `load_rows`); by default the run's own.

    Raises:
        InputError: there is no such checkpoint, it has no such task, or nothing says where the rows are.
    """

    def __init__(self, name: str, tasks: Sequence[str] | None = None, data_dir: str | None = None):
        self.name = name
        try:
            self.config = MultitaskBertConfig.from_pretrained(name)
        except InputError:
            raise
        except Exception as error:  # no such folder, no such Hub id, no network
            raise InputError(f"{name}: no run folder, and it cannot be loaded from the Hub ({error})") from error
        if not self.config.tasks:
            raise InputError(f"{name} is a BERT without heads; expected a run of train_multitask.py")
        run, _ = read_run(name) or (None, None)
        self.data_dir = data_dir or (run.data_dir if run else None)
        self.max_length = min(run.max_length if run else 512, self.config.max_position_embeddings)
        try:
            trained = load_tasks(self.config.tasks)
        except InputError as error:
            raise InputError(f"{name}: its config.json is damaged: {error}") from error
        self.tasks = locate_tasks(name, trained, run, self.data_dir, tasks)

    def load_model(self) -> MultitaskBertModel:
        """The model, on the CPU."""
        try:
            return MultitaskBertModel.from_pretrained(self.name)
        except InputError:
            raise
        except Exception as error:  # a broken checkpoint fails in a dozen ways
            raise InputError(f"{self.name}: cannot be loaded ({error})") from error


def read_spec(spec: str) -> dict:
    """The fields of a task that `--tasks` names, or gives as JSON."""
    return parse_json("--tasks", spec) if spec.startswith("{") else {"name": spec}


def first_run(names: Sequence[str]) -> RunArguments | None:
    """The arguments of the first run among run folders, folders of tables and tables; None where there is none."""
    return next((found[0] for name in names if (found := read_run(name))), None)


def known_tasks(run: RunArguments | None) -> dict[str, Task]:
    """{name: task} of the tasks that a run reads, in its order, and of the presets: the rows of these can be found."""
    own = {task.name: task for task in (run.load_tasks() if run else ())}
    return own | {name: task for name, task in TASKS.items() if name not in own}


def locate_tasks(
    name: str,
    tasks: Mapping[str, Task],
    run: RunArguments | None,
    data_dir: str | None,
    specs: Sequence[str] | None = None,
) -> dict[str, Task]:
    """Tasks as they were trained, with the sources of their rows, which checkpoints and tables do not say.

    Args:
        name: of the checkpoint or tables, for messages.
        tasks: {name: task} of theirs.
        run: the run that they are of, where it is known, which knows their sources; those of presets are known anyway.
        data_dir: where the rows are (see `load_rows`).
        specs: names of the tasks to take, or JSON of a task with its name and its files; by default all.

    Raises:
        InputError: there is no such task, or nothing says where its rows are.
    """
    known = known_tasks(run)
    located = {}
    for spec in tasks if specs is None else specs:
        given = read_spec(spec)
        task = given.get("name")
        if task not in tasks:
            raise InputError(f"--tasks names {task!r}; the tasks of {name} are {', '.join(tasks)}")
        if other := sorted(set(given) - {"name", *SOURCE}):
            raise InputError(f"--tasks: {other[0]!r} of {task!r} is the run's own; give {', '.join(SOURCE)} at most")
        source = {key: getattr(known[task], key) for key in SOURCE} if task in known else {}
        located[task] = load_task(tasks[task].to_config() | source | given)
        example = json.dumps({"name": task, "files": {"train": "FILE", "dev": "FILE", "test": "FILE"}})
        if not located[task].files and not located[task].hub:
            raise InputError(f"{name} does not say where the rows of its task {task!r} are: --tasks '{example}'")
        if located[task].files and data_dir is None:
            raise InputError(f"{name} does not say where its rows are; name a folder, a URL or hub with --data_dir")
    return located
