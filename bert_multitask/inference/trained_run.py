"""A trained run, opened by its name: its configuration, its tasks, its record, its tokenizer and its model."""

from dataclasses import dataclass
from typing import Self

from transformers import PreTrainedTokenizerBase

from ..data.tokens import load_tokenizer
from ..model.configuration import MultitaskBertConfig
from ..model.errors import InputError, explained
from ..model.modeling import MultitaskBertModel
from ..model.tasks import Task, load_tasks
from ..training.run_folder import read_run


@dataclass(frozen=True)
class TrainedRun:
    """A trained checkpoint and the record of its run. `TrainedRun.open` makes one.

    Attributes:
        name: run folder, Hub id or `package:NAME/PATH`.
        config: of the model.
        tasks: {name: task} as trained; where their rows are is not said.
        record: all of `run.json` (see `read_run`); None where there is none, as of a checkpoint from the Hub.
        max_length: tokens that a row may have, as `run.json` says, or without one the tokenizer.
    """

    name: str
    config: MultitaskBertConfig
    tasks: dict[str, Task]
    record: dict | None
    max_length: int

    @classmethod
    def open(cls, name: str) -> Self:
        """Read all but the weights.

        Raises:
            InputError: there is no such checkpoint, it has no heads, or its files are damaged.
        """
        with explained(f"{name}: no run folder, and it cannot be loaded from the Hub"):
            config = MultitaskBertConfig.from_pretrained(name)
        if not config.tasks:
            raise InputError(f"{name} is an encoder without heads; expected a trained run")
        with explained(f"{name}: its config.json is damaged", InputError):
            tasks = load_tasks(config.tasks)
        record = read_run(name)
        longest = record["max_length"] if record else load_tokenizer(name, config.vocab_size).model_max_length
        max_length = min(longest, config.max_position_embeddings)
        return cls(name, config, tasks, record, max_length)

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer."""
        return load_tokenizer(self.name, self.config.vocab_size)

    def load_model(self) -> MultitaskBertModel:
        """The model, on the CPU."""
        with explained(f"{self.name}: cannot be loaded"):
            return MultitaskBertModel.from_pretrained(self.name)
