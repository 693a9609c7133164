"""The parsers of command lines: a YAML file and the flags after it, one-line errors, the help."""

import argparse
import difflib
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from transformers import HfArgumentParser

from ..data.rows import SAMPLE
from ..model.errors import InputError
from ..model.tasks import TASKS, open_group, units
from ..training.arguments import MultitaskTrainingArguments, RunArguments, to_field
from ..training.yaml_file import find_config, load_yaml

# What --help shows of the training flags, by what they are about.
FLAGS = {
    "what is trained": "model_name_or_path tasks data_dir max_length max_train_samples",
    "the model": "encoder_sharing lora_rank pair_encoding pooling freeze_encoder",
    "the plan": "task_epochs schedule max_steps per_device_train_batch_size gradient_accumulation_steps",
    "training": "learning_rate lr_scheduler_type warmup_steps weight_decay class_weights smart_weight bf16 seed",
    "evaluation, logs and the run folder": "eval_steps early_stopping_patience report_to output_dir "
    "resume_from_checkpoint overwrite push_to_hub",
}
# Names that other programs have -> the flag.
OTHERS = {
    **{"lr": "learning_rate", "model": "model_name_or_path", "data": "data_dir", "output": "output_dir"},
    **dict.fromkeys(("bs", "batch_size", "train_batch_size"), "per_device_train_batch_size"),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs"), "task_epochs"),
    **{"max_seq_length": "max_length", "evaluation_strategy": "eval_strategy"},
}
# Plain words for what Transformers' own help takes several lines to say.
HELP = {
    "gradient_accumulation_steps": "micro-batches of a step",
    "warmup_steps": "steps of a rising rate, or share of the plan",
    "weight_decay": "AdamW's weight decay",
    "max_grad_norm": "largest gradient norm; 0 turns clipping off",
    "bf16": "compute in bfloat16 where it is safe",
    "seed": "random seed for heads, dropout and row order",
    "output_dir": "folder to write the run to",
    "push_to_hub": "push the finished run to the Hub",
}


def add_row_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where the rows of trained runs and of their tables are."""
    parser.add_argument("--data_dir", help=f"rows: folder, URL, 'hub' or {SAMPLE}; by default a run's own")
    parser.add_argument(
        *("--tasks", "--task"),
        nargs="+",
        action="extend",
        help='which tasks, by default all; as JSON with files: {"name": "nli", "files": {…}}',
    )


def local_path(name: str) -> Path:
    """A path on this machine, with `~` expanded also where the shell leaves it, as in `--flag=~/x`."""
    return Path(name).expanduser()


def new_folder(name: str) -> Path:
    """A local path at which there is nothing, or an empty folder; for anything else argparse's error."""
    path = local_path(name)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise argparse.ArgumentTypeError(f"{path} is not empty; choose another folder")
    return path


def as_typed(value: object) -> str:
    """A value of a YAML file as it would be typed. YAML reads some texts as dates."""
    return str(value) if isinstance(value, (str, date, float)) else json.dumps(value, default=str)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help with defaults where the words have none, the description as it is written, and one spelling of each flag.

    It overrides two private methods of argparse, which has no public way to choose what is shown of a flag.
    """

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=33)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spellings = action.option_strings
        shown = ", ".join(spellings[: 1 + ("-h" in spellings)])
        return shown or super()._format_action_invocation(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if isinstance(default, list):
            default = " ".join(map(str, default))
        if default is False or default == argparse.SUPPRESS or "default" in action.help:
            default = None
        if action.choices and len(action.choices) <= 4:
            words = [f"{word} (default)" if word == default else str(word) for word in action.choices]
            return f"{action.help}: {', '.join(words)}"
        return action.help if default is None else f"{action.help} (default: {default})"


class CommandParser(argparse.ArgumentParser):
    """The flags of a command. Errors are `InputError`s, one line each. Further arguments are `ArgumentParser`'s.

    Args:
        name: of the command; None for a recipe, which is called by its file.
    """

    def __init__(self, name: str | None, description: str, **options):
        prog = f"bert-multitask {name}" if name else None
        options |= {"prog": prog, "description": description}
        super().__init__(formatter_class=HelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str):
        """Raise the message, which argparse would print with the usage."""
        raise InputError(message)


class ShowAll(argparse.Action):
    """Prints the help of every flag, and ends the process."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(parser.format_all())
        parser.exit()


class RecipeParser(CommandParser, HfArgumentParser):
    """`CONFIG.yaml --flag value …`: fields of the YAML are flags that the command line can override.

    `--help` shows the flags of FLAGS, and those of further dataclasses; `--help-all` shows every flag.

    Args:
        dataclass_types: whose fields are the flags.
        default_config: configuration file where the command line names none (see `find_config`).
        description: the beginning of the help.
        name: see `CommandParser`.
    """

    def __init__(
        self, dataclass_types: Sequence[type], default_config: str | Path, description: str, name: str | None = None
    ):
        usage = "%(prog)s [CONFIG.yaml] [--flag value ...]"
        super().__init__(name, description, dataclass_types=dataclass_types, usage=usage, add_help=False)
        config_help = "YAML file of flags, or the name of a shipped one"
        self.add_argument("config", nargs="?", default=default_config, help=config_help)
        self.add_argument("-h", "--help", action="help", help="show the flags that people set")
        self.add_argument("--help-all", action=ShowAll, nargs=0, help="show every flag")
        for action in self._actions:
            action.help = HELP.get(action.dest, action.help)
        common = {name for names in FLAGS.values() for name in names.split()}
        self.special = [
            name
            for kind in dataclass_types
            if kind not in (RunArguments, MultitaskTrainingArguments)
            for name in vars(kind)["__annotations__"]
            if name not in common
        ]

    def format_help(self) -> str:
        """The help of the flags that are set most often, by what they are about."""
        formatter = HelpFormatter(self.prog)
        # `_actions`, here and below: argparse has no public list of a parser's flags.
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        first = {"": "config help help_all", "this command": " ".join(self.special)}
        for heading, names in (first | FLAGS).items():
            formatter.start_section(heading or "arguments")
            known = {action.dest: action for action in reversed(self._actions)}  # of --x and --no_x the first
            formatter.add_arguments([known[name] for name in names.split()])
            formatter.end_section()
        return formatter.format_help()

    def format_all(self) -> str:
        """The help of every flag."""
        return super().format_help()

    def parse(self, argv: list[str]) -> tuple:
        """Parse a command line into the dataclasses; the path of the configuration file comes last.

        Raises:
            InputError: an unknown flag or field, or a value that is not of its type or out of range.
        """
        config, from_yaml, typed = self.expand(argv)
        flags = [str(config), *from_yaml, *typed]
        try:
            found = self.parse_args_into_dataclasses(flags, return_remaining_strings=True, look_for_args_file=False)
        except ValueError as error:  # of `TrainingArguments`: a mistake of the user's
            raise InputError(str(error)) from error
        *parsed, _, unknown = found
        if unknown:
            hint = self.suggest(unknown[0]) if unknown[0].startswith("-") else " (a configuration file comes first)"
            raise InputError(f"unknown flag {unknown[0]}{hint}; --help-all lists the flags")
        # `--tasks NAME` may name a task that the YAML defines, a group, or a task of a group.
        specs = [spec for spec in to_field(from_yaml) if isinstance(spec, dict) and "name" in spec]
        specs = [one for spec in specs if {"kind", "labels"} & set(spec) for one in (spec, *open_group(spec))]
        defined = {spec["name"]: spec for spec in specs if isinstance(spec.get("name"), str)}
        for arguments in parsed:
            if isinstance(arguments, RunArguments):
                trained = arguments.trained_tasks
                names = [*defined, *trained, *units(trained.values()), *TASKS]
                if unknown := [name for name in arguments.tasks if name not in names and name[:1] != "{"]:
                    choices = f"choose from {', '.join(dict.fromkeys(names))}, or define it in the YAML"
                    raise InputError(f"--tasks: unknown task {unknown[0]!r}; {choices}")
                arguments.tasks = [defined.get(name, name) for name in arguments.tasks]
        return (*parsed, config)

    def expand(self, argv: list[str]) -> tuple[Path, list[str], list[str]]:
        """A command line as its configuration file, the flags in that file, and the flags that were typed."""
        given = bool(argv) and not argv[0].startswith("-")
        config = find_config(argv[0] if given else self.get_default("config"))
        return config, self.read_yaml(config), argv[given:]

    def given(self, argv: list[str]) -> dict[str, object]:
        """The flags that a command line and its configuration file set, as fields of a YAML file."""
        config, from_yaml, typed = self.expand(argv)
        unset = object()
        fields = argparse.Namespace(**{action.dest: unset for action in self._actions})
        self.parse_known_args([str(config), *from_yaml, *typed], fields)
        del fields.config
        return {name: to_field(value) for name, value in vars(fields).items() if value is not unset}

    def read_yaml(self, path: Path) -> list[str]:
        """The flags of a YAML file, as they would be typed."""
        fields = load_yaml(path) or {}
        if not isinstance(fields, dict):
            raise InputError(f"{path}: expected `field: value` lines; of a table `bert-multitask init` writes them")
        known = {action.dest for action in self._actions} - {"help", "help_all", "config"}
        argv = []
        for name, value in fields.items():
            if str(name) not in known:
                hint = self.suggest(str(name))
                raise InputError(f"{path}: unknown field {name!r}{hint}; fields are flags without --")
            if value is False and str(name).endswith("_strategy"):
                value = "no"  # which YAML reads as false
            if value is None:
                continue
            values = value if isinstance(value, list) else [value]
            if None in values:
                raise InputError(f"{path}: {name} has an empty entry; write a value or leave it out")
            argv += [f"--{name}", *map(as_typed, values)]
        return argv

    def suggest(self, name: str) -> str:
        """`, did you mean X?` where a flag is close to the name."""
        flags = {action.dest: action.option_strings[0] for action in self._actions if action.option_strings}
        name = name.lstrip("-").split("=")[0]
        close = [OTHERS[name]] if name in OTHERS else difflib.get_close_matches(name, flags, n=1)
        return f", did you mean {flags[close[0]]}?" if close else ""
