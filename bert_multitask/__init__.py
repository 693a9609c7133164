"""Fine-tune one BERT for many tasks: see the README for the ten lines that do it.

Names are imported when they are first used, so that `import bert_multitask` is quick.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers and editors; `as` says that a name is handed on
    from .arguments import MultitaskTrainingArguments as MultitaskTrainingArguments
    from .configuration import InputError as InputError
    from .configuration import MultitaskBertConfig as MultitaskBertConfig
    from .configuration import NonFiniteError as NonFiniteError
    from .data import clean_rows as clean_rows
    from .data import load_rows as load_rows
    from .data import load_tokenizer as load_tokenizer
    from .data import tokenise_splits as tokenise_splits
    from .export import export_classifier as export_classifier
    from .export import export_encoder as export_encoder
    from .heads import MultitaskBertModel as MultitaskBertModel
    from .modeling import MinBertModel as MinBertModel
    from .optim import PaperAdamW as PaperAdamW
    from .prediction import predict as predict
    from .report import write_report as write_report
    from .smart import smart_penalty as smart_penalty
    from .tasks import TASKS as TASKS
    from .tasks import Task as Task
    from .tasks import load_task as load_task
    from .trainer import MultitaskTrainer as MultitaskTrainer

# So that the verbosity, the handlers and the propagation of `transformers.logging` are those of this package's log.
logging.getLogger(__name__).parent = logging.getLogger("transformers")

_MODULES = {
    "InputError": "configuration",
    "NonFiniteError": "configuration",
    "MultitaskBertConfig": "configuration",
    "MinBertModel": "modeling",
    "MultitaskBertModel": "heads",
    "Task": "tasks",
    "TASKS": "tasks",
    "load_task": "tasks",
    "load_rows": "data",
    "clean_rows": "data",
    "load_tokenizer": "data",
    "tokenise_splits": "data",
    "MultitaskTrainingArguments": "arguments",
    "MultitaskTrainer": "trainer",
    "PaperAdamW": "optim",
    "smart_penalty": "smart",
    "predict": "prediction",
    "export_classifier": "export",
    "export_encoder": "export",
    "write_report": "report",
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
