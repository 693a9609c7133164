"""Fine-tune one BERT for many tasks: see the README for the ten lines that do it.

Names are imported when they are first used, so that `import bert_multitask` is quick.
"""

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; `as` says that a name is handed on
    from .data.rows import clean_rows as clean_rows
    from .data.rows import load_rows as load_rows
    from .data.rows import with_label_names as with_label_names
    from .data.tokens import load_tokenizer as load_tokenizer
    from .data.tokens import tokenise_splits as tokenise_splits
    from .inference.export import export_classifier as export_classifier
    from .inference.export import export_encoder as export_encoder
    from .inference.pipeline import MultitaskPipeline as MultitaskPipeline
    from .model.configuration import MultitaskBertConfig as MultitaskBertConfig
    from .model.encoder import MinBertModel as MinBertModel
    from .model.errors import InputError as InputError
    from .model.errors import NonFiniteError as NonFiniteError
    from .model.modeling import MultitaskBertModel as MultitaskBertModel
    from .model.tasks import TASKS as TASKS
    from .model.tasks import Task as Task
    from .model.tasks import load_task as load_task
    from .reporting.report import write_report as write_report
    from .training.arguments import MultitaskTrainingArguments as MultitaskTrainingArguments
    from .training.optim import PaperAdamW as PaperAdamW
    from .training.smart import smart_penalty as smart_penalty
    from .training.trainer import MultitaskTrainer as MultitaskTrainer

# The process that started this one. A launcher may end while a recipe is still importing (training/stopping.py).
PARENT = os.getppid()

# So that the verbosity, the handlers and the propagation of `transformers.logging` are those of this package's log.
logging.getLogger(__name__).parent = logging.getLogger("transformers")

_MODULES = {
    "InputError": "model.errors",
    "NonFiniteError": "model.errors",
    "MultitaskBertConfig": "model.configuration",
    "MinBertModel": "model.encoder",
    "MultitaskBertModel": "model.modeling",
    "Task": "model.tasks",
    "TASKS": "model.tasks",
    "load_task": "model.tasks",
    "load_rows": "data.rows",
    "clean_rows": "data.rows",
    "with_label_names": "data.rows",
    "load_tokenizer": "data.tokens",
    "tokenise_splits": "data.tokens",
    "MultitaskTrainingArguments": "training.arguments",
    "MultitaskTrainer": "training.trainer",
    "PaperAdamW": "training.optim",
    "smart_penalty": "training.smart",
    "MultitaskPipeline": "inference.pipeline",
    "export_classifier": "inference.export",
    "export_encoder": "inference.export",
    "write_report": "reporting.report",
}

__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
