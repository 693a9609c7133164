"""Every flag of training: a dataclass field with its default and its help text. Most defaults are the paper's."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments
from transformers.hf_argparser import HfArg
from transformers.integrations import is_tensorboard_available
from transformers.trainer_utils import SchedulerType
from transformers.utils import logging

from ..data.rows import HANDOUT, SAMPLE
from ..evaluation.metrics import find_metric
from ..model.configuration import ENCODER_SHARING, PAIR_ENCODING, POOLING, resolve_folder
from ..model.errors import InputError, explained
from ..model.kinds import KINDS
from ..model.tasks import TASKS, Task, check_groups, load_task, load_tasks, units
from .flags import check_devices, check_resolved, check_saving, check_values
from .schedule import SCHEDULES, count_batches, flatten_sizes
from .smart import PLACES, PROJECTIONS, REDUCTIONS

logger = logging.get_logger(__name__)

# Flags that take one value for all tasks or one for each -> the field of `Task` that they set.
TASK_FIELDS = {
    "task_epochs": "epochs",
    "max_train_samples": "max_train_samples",
    "head_dropout": "dropout",
    "class_weights": "class_weights",
    "label_smoothing": "label_smoothing",
    "smart_weight": "smart_weight",
    "bregman_weight": "bregman_weight",
    "loss_weight": "loss_weight",
    "rdrop_weight": "rdrop_weight",
    "distill_from": "distill_from",
    "distill_weight": "distill_weight",
    "distill_temperature": "distill_temperature",
}
# What is expected of such a flag, for messages.
EXPECTED = 'a number, or JSON such as {"sst": 0.2}'
EXPECTED_OF = {
    "task_epochs": 'JSON such as {"sst": 3}',
    "max_train_samples": 'a number, or JSON such as {"quora": 1000}',
    "distill_from": 'a folder, or JSON such as {"sst": "ENSEMBLE"}',
    "class_weights": 'balanced, or JSON such as {"sst": "balanced"}',
}

# Values of --resume_from_checkpoint besides a folder. Scripts of Transformers take true and false, too.
RESUME = {"true": "last", "last": "last", "false": None, "none": None}


@dataclass
class RunArguments:
    """What a run trains: which checkpoint, on which tasks and rows, with which layout and loss."""

    _argument_group_name = "the run"

    model_name_or_path: str = HfArg(
        default="google-bert/bert-base-uncased", help="encoder: Hub id, folder or package:NAME/PATH"
    )
    tasks: list[str] = HfArg(
        default_factory=lambda: ["sst", "quora", "sts"], help="presets (glue/mrpc …), a trained run's, or JSON"
    )
    data_dir: str = HfArg(default=HANDOUT, help=f"folder, URL, 'hub' or {SAMPLE}; by default the course's data")
    max_length: int = HfArg(default=512, help="tokens of a row; longer rows are truncated")
    max_train_samples: dict | str | int | None = HfArg(
        default=None, help="training rows of each task, one number or JSON by task; by default all"
    )
    task_epochs: dict | str | None = HfArg(
        default=None, help="epochs of each task, JSON: '{\"sst\": 3}'; by default the task's own"
    )
    head_dropout: dict | str | float | None = HfArg(
        default=None, help="dropout before the heads, one number or JSON by task; by default the task's own"
    )
    class_weights: dict | str | None = HfArg(
        default=None, help="weights of classes in the loss: balanced, or JSON by task; by default equal"
    )
    label_smoothing: dict | str | float | None = HfArg(
        default=None,
        help="share of a label spread over all classes, a number or JSON by task; by default the task's own",
    )
    encoder_dropout: float | None = HfArg(
        default=None, help="the encoder's two dropout rates; by default the checkpoint's"
    )
    encoder_sharing: str = HfArg(
        default="shared", help="how the tasks share encoders", metadata={"choices": list(ENCODER_SHARING)}
    )
    lora_rank: int | None = HfArg(default=None, help="train LoRA adapters of this rank and the heads")
    lora_alpha: float | None = HfArg(
        default=None, help="LoRA's α: adapters are scaled by α / rank; by default twice --lora_rank"
    )
    lora_target_modules: list[str] | None = HfArg(
        default=None, help="names of the linear layers that get adapters, such as query value; by default all"
    )
    lora_train_encoder: bool = HfArg(
        default=False, help="with --encoder_sharing adapters: also train the shared encoder"
    )
    pair_encoding: str = HfArg(
        default="joint", help="encode a pair as one sequence or as two", metadata={"choices": list(PAIR_ENCODING)}
    )
    pooling: str = HfArg(
        default="cls", help="which embedding of a sequence the heads read", metadata={"choices": list(POOLING)}
    )
    freeze_encoder: bool = HfArg(default=False, help="train only the heads")
    freeze_layers: int | None = HfArg(
        default=None, help="do not train the embeddings and this many of the lowest layers; by default all are trained"
    )
    smart_weight: dict | str | float | None = HfArg(
        default=None, help="SMART's λ, one number or JSON by task; by default the task's own, 0 (off)"
    )
    loss_weight: dict | str | float | None = HfArg(
        default=None, help="factor of a task's loss and its regularisers, one number or JSON by task; by default 1"
    )
    bregman_weight: dict | str | float | None = HfArg(
        default=None, help="μ of SMART's Bregman term, by task as smart_weight; by default the task's own, 0 (off)"
    )
    rdrop_weight: dict | str | float | None = HfArg(
        default=None,
        help="R-Drop: factor of the divergence of two passes with different dropout, by task as smart_weight; "
        "it doubles the cost of a step",
    )
    distill_from: dict | str | None = HfArg(
        default=None,
        help="also learn from a teacher's predictions for the training rows: a folder of prediction tables, or "
        "JSON by task",
    )
    distill_weight: dict | str | float | None = HfArg(
        default=None, help="share of the teacher's term in the loss, by task as smart_weight; by default 0.5"
    )
    distill_temperature: dict | str | float | None = HfArg(
        default=None, help="temperature of the teacher's and the model's probabilities; by default 1"
    )
    overwrite: bool = HfArg(default=False, help="replace the run in --output_dir")

    def __post_init__(self):
        for name in TASK_FIELDS:
            value = getattr(self, name)
            is_folder = name == "distill_from" and not isinstance(value, dict) and not str(value).startswith("{")
            if is_folder or (name == "class_weights" and value == "balanced"):
                continue
            expected = EXPECTED_OF.get(name, EXPECTED)
            value = parse_json(f"--{name}", value, expected)
            numbers = () if name in ("task_epochs", "class_weights") else (int, float)
            if not isinstance(value, (dict, NoneType, *numbers)):
                raise InputError(f"--{name} is {value!r}; expected {expected}")
            setattr(self, name, value)
        if self.freeze_encoder and self.freeze_layers is not None:
            raise InputError("--freeze_encoder freezes all layers; leave out --freeze_layers")
        self.check_lora()
        if self.max_length < 8:
            raise InputError(f"--max_length is {self.max_length}; expected at least 8 tokens")
        if self.encoder_dropout is not None and not 0 <= self.encoder_dropout < 1:
            raise InputError(f"--encoder_dropout is {self.encoder_dropout}; expected a probability in [0, 1)")

    def check_lora(self) -> None:
        """Raises InputError if flags of adapters contradict each other, or do nothing without --lora_rank."""
        if self.lora_rank is None:
            names = ("lora_alpha", "lora_target_modules", "lora_train_encoder")
            flags = [f"--{name}" for name in names if getattr(self, name)]
            if self.encoder_sharing == "adapters":
                flags.append("--encoder_sharing adapters")
            if flags:
                raise InputError(f"{flags[0]} needs the rank of the adapters, for example --lora_rank 16")
            return
        if self.lora_rank < 1 or (self.lora_alpha is not None and not self.lora_alpha > 0):
            raise InputError(
                f"--lora_rank is {self.lora_rank} and --lora_alpha is {self.lora_alpha}; expected a rank of at least 1 "
                "and an alpha above 0"
            )
        if self.encoder_sharing == "per_task":
            raise InputError("--lora_rank does not work with --encoder_sharing per_task; use adapters or shared")
        if self.freeze_encoder or self.freeze_layers is not None:
            flag = "--freeze_encoder" if self.freeze_encoder else "--freeze_layers"
            raise InputError(f"--lora_rank trains adapters on a frozen encoder; leave out {flag}")
        if self.lora_train_encoder and self.encoder_sharing == "shared":
            raise InputError(
                "--lora_train_encoder needs an adapter for each task: --encoder_sharing adapters; to train one shared "
                "encoder, leave out --lora_rank"
            )

    @property
    def peft_config(self) -> dict | None:
        """The fields of `peft.LoraConfig` that the flags set; None without adapters."""
        if self.lora_rank is None:
            return None
        alpha = 2 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
        return {"r": self.lora_rank, "lora_alpha": alpha, "target_modules": self.lora_target_modules}

    @property
    def trained_tasks(self) -> dict[str, Task]:
        """{name: task} of the run that `model_name_or_path` names, as its `run.json` says. Without that file they are
        from its `config.json`, which does not say where rows are; presets then stay as they are. Of anything but a
        trained run's folder there are none.

        Raises:
            InputError: these files are damaged.
        """
        folder = Path(resolve_folder(self.model_name_or_path))
        damage = (InputError, OSError, ValueError, TypeError, AttributeError, RecursionError)
        for path in (folder / "run.json", folder / "config.json"):
            with explained(f"{path}: is damaged", *damage):
                if path.is_file() and (specs := json.loads(path.read_bytes()).get("tasks")):
                    tasks = load_tasks(specs, named=False)
                    return {name: tasks[name] for name in tasks if path.name == "run.json" or name not in TASKS}
        return {}

    def load_tasks(self) -> list[Task]:
        """The run's tasks, with the values of the flags, such as epochs and dropout, instead of their own. A name is of
        one of `trained_tasks`, or of a preset.

        Raises:
            InputError: a task is unknown or named twice, a flag names a task that the run does not have, or a metric
                cannot score its task.
        """
        expected = 'JSON such as {"preset": "sts", "epochs": 3}'
        specs = [parse_json("--tasks", spec, expected) if str(spec).startswith("{") else spec for spec in self.tasks]
        tasks = load_tasks(specs, named=False, known=self.trained_tasks)
        presets, groups = {task.name for task in TASKS.values()}, units(tasks.values())
        for flag, key in TASK_FIELDS.items():
            values = getattr(self, flag)
            if values is not None and not isinstance(values, dict):
                values = dict.fromkeys(able_tasks(flag, tasks), values)
            for name, value in (values or {}).items():
                if name in presets and name not in tasks:
                    continue  # a YAML file sets it for a preset that --tasks left out
                if name not in tasks and name not in groups:
                    raise InputError(f"--{flag} names {name!r}, but the tasks of this run are {', '.join(tasks)}")
                members = groups.get(name, [name])
                for member in able_tasks(flag, {each: tasks[each] for each in members}):
                    tasks[member] = load_task(vars(tasks[member]) | {key: value}, named=False)
        check_groups(tasks)
        for task in tasks.values():
            find_metric(task)
        for flag in ("distill_weight", "distill_temperature"):
            if getattr(self, flag) is not None and not any(task.distill_from for task in tasks.values()):
                raise InputError(f"--{flag} does nothing without --distill_from, which names the teacher")
        return list(tasks.values())


def able_tasks(flag: str, tasks: Mapping[str, Task]) -> list[str]:
    """The tasks that one value of a flag is for: those whose kinds can have it, or all where none can, so that it is
    refused. A line names the others."""
    others = [name for name, task in tasks.items() if TASK_FIELDS[flag] in KINDS[task.kind].refused]
    if not 0 < len(others) < len(tasks):
        return list(tasks)
    why = KINDS[tasks[others[0]].kind].refused[TASK_FIELDS[flag]]
    logger.warning_once(
        f"--{flag} is not for {', '.join(others)}: a task of kind {tasks[others[0]].kind!r} {why}; the others have it"
    )
    return [name for name in tasks if name not in others]


@dataclass
class MultitaskTrainingArguments(TrainingArguments):
    """`TrainingArguments` with a schedule over tasks. Each task has its own epochs, so `num_train_epochs` stays 1.

    These defaults differ from Transformers': batches of 32 and a learning rate of 1e-5, as in the paper (section 5.3);
    about twenty log entries, more for a long plan; an evaluation and a checkpoint every tenth of the plan; the best
    checkpoint by `eval_overall` is kept and loaded at the end; predictions are written; TensorBoard is used if
    installed; the CPU is used if there is no accelerator.
    """

    _argument_group_name = "training"

    schedule: str = HfArg(default="round_robin", help="which task comes next", metadata={"choices": SCHEDULES})
    budget: float = HfArg(default=1.0, help="share of each task's batches to train, in (0, 1]")
    sampling_temperature: float = HfArg(
        default=1.0, help="T: tasks get steps in proportion to size^(1/T); above 1 small tasks get more"
    )
    smart_projection: str = HfArg(
        default="ball",
        help="how SMART bounds its perturbation: ball as in its paper, unit as in smart-pytorch",
        metadata={"choices": PROJECTIONS},
    )
    smart_place: str = HfArg(
        default="words",
        help="what SMART perturbs: word embeddings, or the embedding layer's output, after LayerNorm (BERTs)",
        metadata={"choices": PLACES},
    )
    smart_reduction: str = HfArg(
        default="mean",
        help="SMART's penalty is a mean or a sum over the rows of a step",
        metadata={"choices": REDUCTIONS},
    )
    smart_radius: float = HfArg(
        default=1e-5,
        help="SMART's ε: the bound of the perturbation, in units of what --smart_place perturbs (ball), or what "
        "is added to a divisor (unit)",
    )
    smart_step_size: float = HfArg(default=1e-3, help="SMART's η, length of an ascent step")
    smart_noise_std: float = HfArg(default=1e-5, help="SMART's σ, of the noise that the ascent starts from")
    smart_steps: int = HfArg(default=1, help="SMART's ascent steps; each costs two forward passes")
    smart_share_dropout: bool = HfArg(
        default=False, help="SMART's perturbed passes use the dropout masks of the clean pass"
    )
    bregman_momentum: float = HfArg(
        default=0.99, help="β of the running mean of the weights that --bregman_weight compares with"
    )
    ema_decay: float | None = HfArg(
        default=None,
        help="evaluate and save a running mean of the weights, with this decay, such as 0.995; by default the "
        "weights themselves",
    )
    ema_start: float = HfArg(default=0.3, help="share of the plan before the mean of --ema_decay starts")
    paper_optimizer: bool = HfArg(
        default=False, help="the paper's Adam instead of --optim, slower; the course's ε is --adam_epsilon 1e-6"
    )
    resume_from_checkpoint: str | None = HfArg(
        default=None,
        help="continue from the last checkpoint, or from the given one",
        metadata={"nargs": "?", "const": "last"},
    )
    per_device_train_batch_size: int = HfArg(default=32, help="rows of a micro-batch on one process")
    per_device_eval_batch_size: int = HfArg(default=64, help="rows of an evaluation batch on one process")
    learning_rate: float = HfArg(default=1e-5, help="peak learning rate")
    head_learning_rate: float | None = HfArg(
        default=None, help="peak learning rate of the heads; by default --learning_rate"
    )
    layer_decay: float = HfArg(
        default=1.0,
        help="each layer's learning rate as a share of the next higher layer's; the highest layer has "
        "--learning_rate, the embeddings the lowest",
    )
    lr_scheduler_type: SchedulerType | str = HfArg(default="linear", help="shape of the learning rate over the plan")
    num_train_epochs: float = HfArg(default=1.0, help="always 1, the plan; see --task_epochs")
    max_steps: int = HfArg(default=-1, help="train only this many steps; by default all")
    logging_steps: float = HfArg(
        default=-1, help="steps between log entries, or share of the plan; by default about twenty entries"
    )
    cuda_graphs: bool = HfArg(
        default=False,
        help="on an NVIDIA GPU: record a training step once for each shape of a batch, then replay it with one "
        "launch; for small batches, where the GPU waits for the CPU (docs/performance.md)",
    )
    gradient_cosine_steps: int | None = HfArg(
        default=None,
        help="log the cosines between the tasks' gradients on the shared encoder, measured every N steps; by "
        "default never",
    )
    eval_strategy: str = HfArg(
        default="steps", help="evaluate every --eval_steps (steps), at the end of the plan (epoch) or never (no)"
    )
    eval_steps: float | None = HfArg(default=0.1, help="steps between evaluations, or share of the plan")
    save_strategy: str | None = HfArg(
        default=None,
        help="save checkpoints: steps, epoch, best or no; by default as --eval_strategy, or steps if that is no",
    )
    save_steps: float = HfArg(default=0.1, help="steps between checkpoints, or share of the plan")
    save_total_limit: int | None = HfArg(
        default=2, help="checkpoints to keep; with 2, the best and the last until the run ends"
    )
    early_stopping_patience: int | None = HfArg(
        default=None, help="stop after this many evaluations without improvement; by default never"
    )
    early_stopping_threshold: float = HfArg(
        default=0.0, help="smallest improvement that counts for --early_stopping_patience"
    )
    load_best_model_at_end: bool = HfArg(default=True, help="end with the best checkpoint")
    metric_for_best_model: str | None = HfArg(default="eval_overall", help="score that selects the best checkpoint")
    do_predict: bool = HfArg(default=True, help="write predictions of all dev and test rows at the end")
    hub_strategy: str = HfArg(default="end", help="end: --push_to_hub pushes the finished run")
    report_to: None | str | list[str] = HfArg(
        default=None, help="tensorboard, wandb, none …; by default tensorboard if installed"
    )
    logging_nan_inf_filter: bool = HfArg(
        default=False, help="always False; a loss that is not a finite number stops the run"
    )
    log_level_replica: str | None = HfArg(default="error", help="log level of all processes but the first")
    remove_unused_columns: bool = HfArg(default=False, help="always False; the collator picks the columns")
    ddp_find_unused_parameters: bool | None = HfArg(
        default=True, help="True, because the heads of the other tasks have no gradient in a step"
    )

    def __post_init__(self):
        smart = {"smart_projection": PROJECTIONS, "smart_place": PLACES, "smart_reduction": REDUCTIONS}
        check_values(self, {"schedule": SCHEDULES, **smart})
        if (self.eval_steps or 0) >= 1 > self.save_steps:
            self.save_steps = self.eval_steps  # Transformers refuses one as a number and the other as a share
        if self.save_strategy is None:
            self.save_strategy = "steps" if self.eval_strategy == "no" else self.eval_strategy
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False  # without scores there is no best checkpoint
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            self.lr_scheduler_type = "constant_with_warmup"  # "constant" would silently ignore the warmup
        if self.report_to is None:
            self.report_to = ["tensorboard"] if is_tensorboard_available() else []
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.resume_from_checkpoint = RESUME.get(str(self.resume_from_checkpoint).lower(), self.resume_from_checkpoint)
        # Otherwise a resumed run would count the evaluations without improvement from 0.
        self.restore_callback_states_from_checkpoint |= self.early_stopping_patience is not None
        check_devices(self)
        check_saving(self)
        super().__post_init__()
        check_resolved(self)

    @property
    def n_gpu(self) -> int:
        """At most one GPU for a process: with several, Trainer uses DataParallel, which cannot split our batches."""
        return min(super().n_gpu, 1)

    @property
    def total_train_batch_size(self) -> int:
        """Rows of an optimizer step, over all processes and accumulation steps."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    @property
    def loader_options(self) -> dict[str, Any]:
        """The --dataloader_… flags as arguments of PyTorch's `DataLoader`."""
        names = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "multiprocessing_context")
        return {name: getattr(self, f"dataloader_{name}") for name in names}

    @property
    def plan_seed(self) -> int:
        """The seed of the plan and of the order of rows."""
        return self.seed if self.data_seed is None else self.data_seed

    @property
    def has_own_rates(self) -> bool:
        """Whether heads or layers have learning rates of their own."""
        return self.head_learning_rate is not None or self.layer_decay != 1

    @property
    def evaluates_epoch_ends(self) -> bool:
        """Whether to evaluate and save also where a task ends an epoch: the schedule's attribute `epoch_ends`."""
        return getattr(SCHEDULES[self.schedule], "epoch_ends", False)

    def lay_plan(self, rows: Mapping[str, int], epochs: Mapping[str, int]) -> tuple[dict[str, int], list[str]]:
        """The schedule's plan, not yet cut to `max_steps`.

        Args:
            rows: {task: number of training rows}.
            epochs: {task: how often each row is seen}.

        Returns:
            {task: its batches}, and the task of each step.
        """
        batches = count_batches(rows, epochs, self.total_train_batch_size, self.budget)
        batches = flatten_sizes(batches, self.sampling_temperature)
        return batches, SCHEDULES[self.schedule](batches, self.plan_seed)


def check_launch() -> PartialState:
    """Refuse a launch whose process does not find the others, and warn about idle CPU cores and GPUs.

    Returns:
        The state of the processes, and this one's device.

    Raises:
        InputError: `accelerate launch --cpu --num_processes N` starts only one process, which would train alone.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())  # else processes without a GPU form no group
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ and state.num_processes == 1:
        raise InputError(
            "several processes were asked for, but this one is alone; use `accelerate launch --config_file "
            "accelerate_config.yaml --num_processes N`, and --use_cpu after the command's name if there is no GPU"
        )
    on_cpu = state.device.type == "cpu"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if on_cpu and state.is_main_process and torch.get_num_threads() == 1 < cores // state.num_processes:
        logger.warning(
            f"each process uses one of {cores} CPU cores, since OMP_NUM_THREADS is 1; raise it, or give `accelerate "
            "launch` --num_cpu_threads_per_process N"
        )
    devices = 0 if on_cpu else torch.accelerator.device_count()
    if state.is_main_process and state.num_processes == 1 < devices:
        logger.warning(f"only one of {devices} GPUs is used: `accelerate launch --num_processes N` uses N")
    return state


def parse_json(flag: str, value, expected: str = 'JSON such as {"sst": 3}'):
    """The value of a JSON flag; one that is not a string counts as parsed. `expected` is for the message.

    Raises:
        InputError: it is not valid JSON.
    """
    if not isinstance(value, str):
        return value
    what, hint = f"{flag} is {value!r}, which is not JSON", f"expected {expected}"
    with explained(what, ValueError, RecursionError, hint=hint):  # it may have too many digits, or levels
        return json.loads(value)


def to_field(value):
    """A flag's value as a field of a YAML file: a dictionary written as JSON is parsed."""
    if isinstance(value, list):
        return [to_field(item) for item in value]
    return parse_json("a flag", value) if isinstance(value, str) and value.startswith("{") else value
