"""What a hyperparameter search tries: flags, the ranges and choices of their values, and a trial's values as flags."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from transformers.hf_argparser import HfArg
from transformers.utils import logging

from ..model.errors import InputError, explained
from ..model.tasks import TASKS
from .arguments import TASK_FIELDS, MultitaskTrainingArguments, RunArguments, parse_json
from .yaml_file import find_config, load_yaml

logger = logging.get_logger(__name__)

# What can be searched: what decides the weights, but neither rows, tokens nor steps, which a search's trials share.
NUMBERS = (
    "learning_rate head_learning_rate layer_decay weight_decay warmup_steps adam_beta1 adam_beta2 max_grad_norm "
    "head_dropout encoder_dropout label_smoothing "
    "smart_weight smart_radius smart_step_size smart_noise_std bregman_weight bregman_momentum rdrop_weight "
    "loss_weight distill_weight distill_temperature"
).split()
WORDS = "lr_scheduler_type smart_projection smart_place smart_reduction".split()
# What does nothing unless a task has a smart_weight.
OF_SMART = "smart_radius smart_step_size smart_noise_std smart_projection smart_place smart_reduction".split()
RANGE = {"low", "high", "log"}

Space = Mapping[str, dict | list]
"""{flag, or flag.task: {"low": …, "high": …, "log": …}, or its choices}."""


@dataclass
class TuneArguments:
    """How often a search tries, and what; every other flag holds for all of its trials."""

    _argument_group_name = "the search"

    n_trials: int = HfArg(default=20, help="trials in all: those that --output_dir already has finished count")
    jobs: int = HfArg(default=1, help="trials at a time, in processes with equal shares of the CPU's threads")
    search: dict | str | None = HfArg(
        default=None,
        help='what to search, a YAML file or JSON: \'{"learning_rate": {"low": 1e-5, "high": 1e-4, '
        '"log": true}, "head_dropout.*": [0.1, 0.3]}\'; by default tune.yaml, which the package ships',
    )

    def __post_init__(self):
        if self.n_trials < 1:
            raise InputError(f"--n_trials is {self.n_trials}; expected at least 1")


def read_space(search: str | Mapping | None, run: RunArguments, args: MultitaskTrainingArguments) -> Space:
    """The space of a search, checked at its ends and choices.

    What is of a preset that the run does not have is left out.

    Args:
        search: YAML file, JSON, or what they hold: {flag: {low, high} or choices}. `log: true` searches the logarithm;
            `flag.task` is a flag's value for one task, and `flag.*` for each task without such an entry. None, the
            space that the package ships.

    Raises:
        InputError: names the entry and what is wrong with it.
    """
    where, entries = read_entries("tune.yaml" if search is None else search)
    tasks = [task.name for task in run.load_tasks()]
    space = {}
    for name, values in expand(entries, tasks).items():
        flag, _, task = str(name).partition(".")
        if flag not in (*NUMBERS, *WORDS) or (task and flag not in TASK_FIELDS):
            raise InputError(
                f"{where}: {name} cannot be searched; choose from {', '.join((*NUMBERS, *WORDS))}; "
                f"{', '.join(key for key in TASK_FIELDS if key in NUMBERS)} also for a task, as head_dropout.{tasks[0]}"
            )
        if task and flag in entries:
            raise InputError(f"{where}: {flag} is of all tasks, and {name} of one; name the tasks one by one")
        if task not in tasks and task in {preset.name for preset in TASKS.values()}:
            continue
        if task and task not in tasks:
            raise InputError(f"{where}: {name}, but the tasks of this run are {', '.join(tasks)}")
        space[name] = read_values(f"{where}: {name}", values, numbers=flag in NUMBERS)
        for value in space[name] if isinstance(space[name], list) else (space[name]["low"], space[name]["high"]):
            with explained(f"{where}: {name}", InputError, ValueError):  # those of Transformers are ValueErrors
                configure(run, args, {name: value})[0].load_tasks()
    if not space:
        raise InputError(f"{where}: names nothing to search; expected, for example, learning_rate: [1e-5, 3e-5]")
    return without_idle(space, run)


def without_idle(space: Space, run: RunArguments) -> dict[str, dict | list]:
    """The space without the flags of SMART, with a warning, where no task can have a smart_weight."""
    able = [
        isinstance(values, dict) or any(values) for name, values in space.items() if flag_of(name) == "smart_weight"
    ]
    idle = [name for name in space if name in OF_SMART]
    if not idle or any(able) or any(task.smart_weight for task in run.load_tasks()):
        return space
    logger.warning(f"{', '.join(idle)}: not searched, since no task has a smart_weight")
    return {name: values for name, values in space.items() if name not in idle}


def flag_of(name: str) -> str:
    """The flag of an entry, which may be for one task."""
    return name.partition(".")[0]


def expand(entries: Mapping, tasks: Sequence[str]) -> dict[str, object]:
    """Entries of a space with one for each task instead of `flag.*`, unless the task has its own."""
    expanded: dict[str, object] = {}
    for name, values in entries.items():
        flag, _, task = str(name).partition(".")
        names = [f"{flag}.{each}" for each in tasks] if task == "*" else [str(name)]
        expanded |= {each: values for each in names if each == name or each not in entries}
    return expanded


def read_entries(search: str | Mapping) -> tuple[str, Mapping]:
    """Where a space is from, in words, and what it has."""
    entries = search
    if str(search).startswith("{"):
        entries = parse_json("--search", search, 'JSON such as {"learning_rate": [1e-5, 3e-5]}')
    if isinstance(entries, Mapping):
        return "--search", entries
    try:
        entries = load_yaml(find_config(search))
    except InputError as error:
        raise InputError(f"--search {error}") from error
    if not isinstance(entries, Mapping):
        raise InputError(f"--search {search}: expected lines `flag: {{low: …, high: …}}` or `flag: [choices]`")
    return f"--search {search}", entries


def read_values(where: str, values: object, numbers: bool) -> dict | list:
    """A range or the choices of one flag; YAML reads 1e-5 as a word, so that numbers are made numbers here."""
    try:
        if isinstance(values, Mapping) and numbers and {"low", "high"} <= set(values) <= RANGE:
            low, high, log = float(values["low"]), float(values["high"]), values.get("log", False)
            if low < high and log in (True, False) and (low > 0 or not log):
                return {"low": low, "high": high, "log": bool(log)}
        if isinstance(values, Sequence) and not isinstance(values, str) and values:
            return [float(value) if numbers else str(value) for value in values]
    except (TypeError, ValueError):
        pass  # as what fits neither form
    of_numbers = (
        "{low: …, high: …} with low < high, {low: …, high: …, log: true} with low above 0, or a list of numbers"
    )
    raise InputError(f"{where}: {values!r}; expected {of_numbers if numbers else 'a list of choices'}")


def configure(
    run: RunArguments, args: MultitaskTrainingArguments, settings: Mapping[str, object]
) -> tuple[RunArguments, MultitaskTrainingArguments]:
    """The arguments of a trial, {flag or flag.task: value}, as if they had been typed.

    Raises:
        InputError: a value is out of its flag's range.
    """
    flags = to_flags(run, settings)
    of_run, of_training = ({name: flags[name] for name in flags if hasattr(part, name)} for part in (run, args))
    return dataclasses.replace(run, **of_run), dataclasses.replace(args, **of_training)


def to_flags(run: RunArguments, settings: Mapping[str, object]) -> dict[str, object]:
    """{flag: value} of a trial's {flag or flag.task: value}: the flags of tasks have the run's values of the others."""
    tasks, flags = run.load_tasks(), {}
    for name, value in settings.items():
        flag, _, task = name.partition(".")
        if task:
            flags.setdefault(flag, {each.name: getattr(each, TASK_FIELDS[flag]) for each in tasks})[task] = value
        else:
            flags[flag] = value
    return flags


def present_settings(space: Space, run: RunArguments, args: MultitaskTrainingArguments) -> dict[str, object]:
    """What the flags as they are give of a space; values that lie outside are left out."""
    settings = {}
    for name, values in space.items():
        now = present_values(name, run, args)
        if isinstance(values, list):
            inside = [value for value in values if value in now]
        else:
            inside = [value for value in now if values["low"] <= value <= values["high"]]
        if len(now) == len(inside) == 1:
            settings[name] = inside[0]
    return settings


def present_values(name: str, run: RunArguments, args: MultitaskTrainingArguments) -> set:
    """The values that the flags as they are give of an entry of a space: several where tasks differ."""
    flag, _, task = name.partition(".")
    if flag in TASK_FIELDS:
        return {getattr(each, TASK_FIELDS[flag]) for each in run.load_tasks() if task in ("", each.name)}
    return {getattr(run if hasattr(run, flag) else args, flag)} - {None}


def include_given(
    space: Space, run: RunArguments, args: MultitaskTrainingArguments, given: Collection[str]
) -> dict[str, dict | list]:
    """A space whose ranges and choices also have the values of the flags that the user set, and those of the tasks."""
    wider = dict(space)
    for name, values in space.items():
        for value in present_values(name, run, args) if is_given(name, given) else ():
            if isinstance(values, list):
                wider[name] = values + [value] * (value not in values)
            elif value > 0 or not values["log"]:
                wider[name] = values | {"low": min(values["low"], value), "high": max(values["high"], value)}
    return wider


def is_given(name: str, given: Collection[str]) -> bool:
    """Whether the value of an entry is the user's: that of a flag that was set, or a task's."""
    return flag_of(name) in {*given, *TASK_FIELDS}


def describe_first(space: Space, shipped: Space, settings: Mapping[str, object], given: Collection[str]) -> list[str]:
    """Lines on how a space treats the user's own values.

    Args:
        space: what is searched.
        shipped: the same before `include_given`.
        settings: of the first trial, as far as the space has them.
        given: the flags that the user set.
    """
    wider = {name: values for name, values in space.items() if values != shipped[name]}
    lines = [
        f"{name}: searched from {values['low']:g} to {values['high']:g}, to include your value"
        if isinstance(values, dict)
        else f"{name}: searched among {', '.join(map(str, values))}, to include your value"
        for name, values in wider.items()
    ]
    outside = [name for name in space if is_given(name, given) and name not in settings]
    if outside:
        lines.append(f"not in the search space: your {', '.join(outside)}; the first trial draws others")
    return lines
