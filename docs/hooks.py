"""What the site has beyond the pages in this folder: the repository's top-level pages, and the flags of the recipes."""

from dataclasses import MISSING, Field, fields
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.jobs import SeedArguments
from bert_multitask.training.search_space import TuneArguments

PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages; a link of the repository leads to the same page of the site."""
    for name in PAGES:
        text = Path(config.config_file_path).with_name(name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    files.append(File.generated(config, "reference/flags.md", content=flags_page()))
    return files


def on_page_markdown(markdown: str, **_) -> str:
    """In docs/howto/, a link to a top-level page of the repository leads to the site's."""
    return markdown.replace("](../../", "](../")


def flags_page() -> str:
    """The flags of the training recipes, as a table: those that are ours, or that have a default of ours."""
    lines = [
        "# Flags",
        "Flags of `bert-multitask train` and of the training recipes, and fields of their YAML. The other fields of "
        "`transformers.TrainingArguments` are flags too. `SeedArguments` are of `bert-multitask train` alone, and "
        "`TuneArguments` of `bert-multitask tune`.",
    ]
    for arguments in (RunArguments, MultitaskTrainingArguments, SeedArguments, TuneArguments):
        lines += [f"## {arguments.__name__}", "| flag | what it does |\n|---|---|"]
        own = [field for field in fields(arguments) if field.name in vars(arguments)["__annotations__"]]
        lines[-1] += "".join(f"\n| `--{field.name}` | {describe(field)} |" for field in own)
    return "\n\n".join(lines) + "\n"


def describe(field: Field) -> str:
    """A flag's help, choices and default, as its row shows them."""
    text = field.metadata["help"]
    if choices := field.metadata.get("choices"):
        text += f"; one of {', '.join(f'`{choice}`' for choice in choices)}"
    value = field.default if field.default is not MISSING else field.default_factory()
    if value is not None:
        text += f"; default `{' '.join(value) if isinstance(value, list) else value}`"
    return text.replace("|", "\\|")
