"""Fine-tune one BERT for many tasks: see the README for the ten lines that do it.

Names are imported when they are first used, so that `import bert_multitask` is quick.
"""

import importlib

_MODULES = {
    "InputError": "configuration",
    "MultitaskBertConfig": "configuration",
    "MinBertModel": "modeling",
    "MultitaskBertModel": "heads",
    "Task": "tasks",
    "TASKS": "tasks",
    "load_task": "tasks",
    "load_rows": "data",
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


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
