"""What `MultitaskTrainer` refuses when it is built, before anything is computed or written."""

import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import Trainer, get_scheduler
from transformers.utils import logging

from ..data.labels import label_numbers
from ..data.token_rows import check_labelled, rows_by_task
from ..evaluation.metrics import find_metric
from ..model.encoder import MinBertModel
from ..model.errors import InputError, explained
from ..model.modeling import MultitaskBertModel
from ..model.tasks import Task
from .arguments import MultitaskTrainingArguments
from .optim import encoder_depths
from .randomness import kept_generators
from .smart import PLACES

logger = logging.get_logger(__name__)

# Arguments of Trainer.__init__ that MultitaskTrainer refuses -> the reason, and what to use instead.
REFUSED = {
    "model_init": "plan and optimizer are made for one model: give a model; `bert-multitask tune` searches",
    "preprocess_logits_for_metrics": "the scores and prediction tables need the logits; use compute_metrics",
}


def check_parts(model: object, args: object, refused: Mapping[str, object]) -> None:
    """Raises InputError if the model or the arguments are of another class, or an argument in REFUSED is given."""
    for name, value in refused.items():
        if value is not None:
            raise InputError(f"MultitaskTrainer takes no {name}: {REFUSED[name]}")
    if not isinstance(getattr(model, "tasks", None), Mapping):  # no isinstance: a PEFT wrapper has `tasks`, too
        raise InputError(f"model is a {type(model).__name__}; expected a MultitaskBertModel")
    if not isinstance(args, MultitaskTrainingArguments):
        raise InputError(f"args is a {type(args).__name__}; expected MultitaskTrainingArguments")


def train_rows(
    given: object, model: MultitaskBertModel, args: MultitaskTrainingArguments, tokenizer: object
) -> dict[str, Dataset]:
    """The training rows of every task of the model (see `rows_by_task`). Each task needs rows with labels."""
    given = {} if given is None else given
    rows = rows_by_task(given, model, "train_dataset", "train", tokenizer, args.seed)
    if missing := [name for name in model.tasks if name not in rows]:
        raise InputError(f"train_dataset has no rows of task {missing[0]!r}, which the model has")
    check_labelled(rows, "train_dataset")
    return rows


def eval_rows(
    given: object, model: MultitaskBertModel, args: MultitaskTrainingArguments, tokenizer: object
) -> dict[str, Dataset]:
    """The rows to evaluate on, of every task of the model. Without evaluation there may be none."""
    rows = {} if given is None else rows_by_task(given, model, "eval_dataset", "dev", tokenizer)
    missing = [name for name in model.tasks if name not in rows]
    if missing and (rows or args.eval_strategy != "no" or args.eval_on_start):
        raise InputError(
            f"eval_dataset has no rows of task {missing[0]!r}: give {{task: rows}} of every task of the model, or "
            'switch off evaluation with eval_strategy="no"'
        )
    check_labelled(rows, "eval_dataset")
    return rows


def balance_tasks(model: MultitaskBertModel, rows: Mapping[str, Dataset]) -> None:
    """Replace "balanced" class weights of the model's tasks by numbers, counted in {task: training rows}."""
    for task in [task for task in model.tasks.values() if task.class_weights == "balanced"]:
        labels, _ = label_numbers(rows[task.name].with_format("arrow")[:]["labels"])
        model.change_task(task.balance(labels.tolist()))


def check_plan(plan: object, tasks: Collection[str], where: str) -> None:
    """Raises InputError if a plan is not a list of the model's tasks, one for each step."""
    if not isinstance(plan, Sequence) or isinstance(plan, str) or not plan:
        found = "empty" if isinstance(plan, Sequence) and not plan else f"a {type(plan).__name__}"
        raise InputError(f"{where} is {found}; expected a list of the task of each step")
    for step, task in enumerate(plan, start=1):
        if task not in tasks:
            raise InputError(f"{where}: step {step} has {task!r}, but the model's tasks are {', '.join(tasks)}")


def by_task(given: object, tasks: Mapping[str, Task], argument: str) -> dict[str, Callable]:
    """{task: function} from one function for all tasks, from {task: function} for some, or from None."""
    functions = given if isinstance(given, Mapping) else dict.fromkeys(tasks, given) if given is not None else {}
    for name, function in functions.items():
        if name not in tasks:
            raise InputError(f"{argument} names {name!r}, but the model's tasks are {', '.join(tasks)}")
        if not callable(function):
            raise InputError(f"{argument} is a {type(function).__name__}; expected a function, or {{task: function}}")
    return dict(functions)


def loss_functions(given: object, tasks: Mapping[str, Task]) -> dict[str, Callable]:
    """The user's losses, {task: function}. Refuses wrong arguments, and options of the loss that each replaces."""
    functions = by_task(given, tasks, "compute_loss_func")
    for name, function in functions.items():
        with explained("compute_loss_func is called as f(outputs, labels, num_items_in_batch=…)", TypeError):
            inspect.signature(function).bind(None, None, num_items_in_batch=None)
        for field in ("class_weights", "label_smoothing"):
            if getattr(tasks[name], field):
                raise InputError(
                    f"task {name!r}: {field} belongs to the task's own loss, which compute_loss_func replaces; leave "
                    "out one of them"
                )
    return {name: partial(scalar_loss, function, name) for name, function in functions.items()}


def scalar_loss(function: Callable, task: str, outputs: object, labels: Tensor, **kwargs: Any) -> Tensor:
    """Call a loss of the user's, and refuse a result that is not one number."""
    loss = function(outputs, labels, **kwargs)
    if not isinstance(loss, Tensor) or loss.dim():
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise InputError(f"compute_loss_func gives {found} for task {task!r}; expected one number, as a tensor")
    return loss


def check_loader(args: MultitaskTrainingArguments) -> None:
    """Raises InputError if PyTorch's data loader refuses its settings. No worker is started."""
    with explained("PyTorch's data loader refuses the --dataloader_… flags", TypeError, ValueError):
        DataLoader([0], **args.loader_options)


def check_collator(collator: object, rows: Mapping[str, Dataset]) -> None:
    """Try a collator of the user's on two rows of each task."""
    for name, part in rows.items():
        try:
            batch = collator([part[number] for number in range(min(2, len(part)))])
        except Exception as error:  # it is the user's code
            raise InputError(
                f"data_collator fails on rows of task {name!r}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(batch, Mapping) or batch.get("task") != name or not {"input_ids", "labels"} <= batch.keys():
            found = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
            raise InputError(
                f"data_collator gives {found} for rows of task {name!r}; expected task (its name), input_ids, "
                "attention_mask, token_type_ids and labels, as bert_multitask.data.collate.Collator gives them"
            )
        if "soft_labels" in part.column_names and "soft_labels" not in batch:
            raise InputError(f"data_collator drops the soft_labels of task {name!r}, its teacher's predictions")
        check_packing(batch)


def check_packing(batch: Mapping[str, Any]) -> None:
    """Raises InputError if a user's collator gives a packing that is not that of its mask: attention would use the
    packing."""
    packing, mask = batch.get("packing"), batch.get("attention_mask")
    if packing is not None and (mask is None or not packing.fits(mask.flatten(0, -2))):
        raise InputError(
            f"data_collator gives a packing that does not fit its attention_mask, for rows of task {batch['task']!r}; "
            "leave out the packing, or change the rows before Collator makes both"
        )


def check_optimizers(
    model: nn.Module,
    args: MultitaskTrainingArguments,
    optimizers: tuple[Optimizer | None, object],
    optimizer_cls_and_kwargs: tuple[type, dict] | None,
) -> None:
    """Raises InputError if an optimizer or a schedule is given twice, cannot be made, or does not train this model."""
    optimizer, schedule = optimizers
    given = {
        "paper_optimizer": args.paper_optimizer,
        "optimizers": optimizer is not None,
        "optimizer_cls_and_kwargs": optimizer_cls_and_kwargs is not None,
    }
    if len(names := [name for name, is_given in given.items() if is_given]) > 1:
        raise InputError(f"{names[0]} and {names[1]} exclude each other: each names the optimizer")
    if not names:
        check_optim(args, model)
    if args.has_own_rates:
        check_rates(model, args, optimizer)
    if optimizer is not None:
        own = {id(parameter) for parameter in model.parameters()}
        if any(id(parameter) not in own for group in optimizer.param_groups for parameter in group["params"]):
            raise InputError("optimizers[0] has parameters that are not this model's; use model.parameters()")
    if schedule is None:
        with explained(f"--lr_scheduler_type {args.lr_scheduler_type.value} with its kwargs", TypeError, ValueError):
            get_scheduler(
                args.lr_scheduler_type,
                torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1),
                args.get_warmup_steps(args.max_steps),
                args.max_steps,
                scheduler_specific_kwargs=args.lr_scheduler_kwargs,
            )


def check_rates(model: MultitaskBertModel, args: MultitaskTrainingArguments, optimizer: Optimizer | None) -> None:
    """Raises InputError if learning rates of heads and layers could not be applied."""
    if optimizer is not None:
        raise InputError(
            "--head_learning_rate and --layer_decay do nothing with optimizers[0]; set the rates in its groups"
        )
    if args.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        raise InputError("--head_learning_rate and --layer_decay do not work with DeepSpeed, which makes the optimizer")
    if args.layer_decay != 1:
        for name in model.tasks:
            encoder_depths(model.encoder(name))  # raises if it finds no list of layers


def check_optim(args: MultitaskTrainingArguments, model: nn.Module) -> None:
    """Raises InputError if the package or the layers of --optim are missing, or if it does not take or ignores
    --optim_args."""
    where = f"--optim {args.optim.value}"
    what = f"{where} --optim_args {args.optim_args} cannot be made" if args.optim_args else f"{where} cannot be made"
    with explained(what, ImportError, ValueError, TypeError, NotImplementedError, RuntimeError):
        optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if settings.keys().isdisjoint(("params", "model", "optimizer_dict")):
            optimizer([nn.Parameter(torch.zeros(1))], **settings)
        bare = copy.copy(args)
        bare.optim_args = None
        ignored = args.optim_args and Trainer.get_optimizer_cls_and_kwargs(bare, model)[1] == settings
    if ignored:
        raise InputError(f"--optim_args {args.optim_args} does nothing with {where}; leave it out")


def check_training(
    model: MultitaskBertModel,
    args: MultitaskTrainingArguments,
    plan: Sequence[str],
    compute_metrics: Mapping[str, Callable],
) -> None:
    """Refuse settings that do not fit the model, its tasks or each other.

    Raises:
        InputError: names the setting.
    """
    check_metrics(model.tasks, args, compute_metrics)
    check_smart(model, args)
    check_rdrop(model, args)
    if args.gradient_cosine_steps and (model.config.encoder_sharing != "shared" or len(model.units) == 1):
        raise InputError(
            "--gradient_cosine_steps needs several tasks with a shared encoder (a group counts as one); leave it out"
        )
    check_sharding(model, args)
    check_weights(model, plan)
    check_loader(args)


def check_metrics(
    tasks: Mapping[str, Task], args: MultitaskTrainingArguments, compute_metrics: Mapping[str, Callable]
) -> None:
    """Raises InputError if no evaluation would compute a metric. Keys of `compute_metrics` are known only after the
    first evaluation, so `MultitaskTrainer.check_best` checks those."""
    for task in tasks.values():
        find_metric(task)
    if args.include_for_metrics and not compute_metrics:
        raise InputError("--include_for_metrics does nothing without compute_metrics")
    keys = [f"{name}_{key}" for name, task in tasks.items() for key in (task.metric, "loss")] + ["overall"]
    best = (args.metric_for_best_model or "overall").removeprefix("eval_")
    if args.eval_strategy != "no" and best not in keys and not best.startswith(tuple(f"{n}_" for n in compute_metrics)):
        raise InputError(f"--metric_for_best_model is {args.metric_for_best_model!r}; choose one of {', '.join(keys)}")


def check_smart(model: MultitaskBertModel, args: MultitaskTrainingArguments) -> None:
    """Raises InputError for --smart_place embeddings without minBERT. Warns about SMART's flags if no task uses SMART,
    and about a perturbation that half precision rounds away: it keeps only 8 to 11 bits of hidden states near 1."""
    tasks = model.tasks
    flags = {field.name: field.default for field in dataclasses.fields(args) if field.name.startswith("smart_")}
    if not any(task.smart_weight for task in tasks.values()):
        for name, default in flags.items():
            if getattr(args, name) != default:
                logger.warning(f"--{name} does nothing: no task has a --smart_weight")
        return
    if args.smart_place == "embeddings" and not isinstance(model.encoder(next(iter(tasks))), MinBertModel):
        raise InputError(
            f"--smart_place embeddings needs a BERT, not a {model.config.text_config.model_type!r}; leave it out to "
            "perturb word embeddings"
        )
    kept = PLACES[args.smart_place]
    if args.mixed_precision in ("bf16", "fp16") and args.smart_projection == "ball" and args.smart_radius < kept:
        logger.warning(
            f"--smart_radius {args.smart_radius:g} is rounded away by --bf16 or --fp16, so SMART compares little more "
            f"than dropout masks; use at least {kept:g} (docs/results.md)"
        )


def check_rdrop(model: MultitaskBertModel, args: MultitaskTrainingArguments) -> None:
    """Raises InputError for R-Drop together with --smart_share_dropout. Warns if there is no dropout at all."""
    for unit, names in model.units.items():
        tasks = [model.tasks[name] for name in names]
        smart = args.smart_share_dropout and any(task.smart_weight for task in tasks)
        if smart and any(task.rdrop_weight for task in tasks):
            raise InputError(
                f"task {unit!r} has a rdrop_weight: its two passes have different dropout masks, but "
                "--smart_share_dropout repeats the masks of one pass; leave out one of the two"
            )
    for name, task in model.tasks.items():
        if task.rdrop_weight and not has_dropout(model, name):
            logger.warning(f"task {name!r}: rdrop_weight does little: the encoder and the head have no dropout")


@torch.no_grad()
def has_dropout(model: MultitaskBertModel, task: str) -> bool:
    """Whether two training passes of the same tokens differ. It is measured, because some encoders have dropout layers
    and others read a rate from their configuration in each pass."""
    ids = torch.arange(model.config.vocab_size, device=model.device)[-16:]
    ids = ids.view((1, 2, -1) if model.is_separate(model.tasks[task]) else (1, -1))
    before = model.training
    with kept_generators(model.device):
        first, second = (model.train()(task, ids).logits for _ in range(2))
    model.train(before)
    return not torch.equal(first, second)


def check_sharding(model: MultitaskBertModel, args: MultitaskTrainingArguments) -> None:
    """Raises InputError for settings that go wrong, mostly without an error, if DeepSpeed or FSDP splits weights over
    processes."""
    sharing = model.config.encoder_sharing
    deepspeed = args.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    for name in ("ema_decay", "gradient_cosine_steps"):
        if getattr(args, name) and deepspeed:
            raise InputError(f"--{name} does not work with DeepSpeed, which holds the weights itself; leave it out")
    if sharing != "shared" and deepspeed:
        raise InputError(
            f"--encoder_sharing {sharing} does not work with DeepSpeed: it gives idle weights gradients of zeros, and "
            "Adam would still move them; use recipes/accelerate/multi_gpu.yaml"
        )
    if not (args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
        return
    refused = {
        "--smart_weight": any(task.smart_weight for task in model.tasks.values()),  # bypasses FSDP's forward pass
        "--bregman_weight": any(task.bregman_weight for task in model.tasks.values()),  # averages whole weights
        "--gradient_cosine_steps": args.gradient_cosine_steps is not None,
        "--ema_decay": args.ema_decay is not None,
        "--lora_rank": model.config.lora is not None,
        "--encoder_sharing per_task with --load_best_model_at_end": sharing != "shared" and args.load_best_model_at_end,
        "a CPU, on which Accelerate does not split the model,": args.device.type == "cpu",
    }
    if names := [name for name, asked in refused.items() if asked]:
        raise InputError(
            f"{names[0]} does not work with FSDP, which splits the weights; leave it out, or use another configuration "
            "of recipes/accelerate"
        )


def check_weights(model: MultitaskBertModel, plan: Sequence[str]) -> None:
    """Refuse weights in half precision, tasks with nothing to train, and adapters that could not be loaded again. Warns
    about heads that are not trained. The model may be one that peft made.

    Raises:
        InputError: names the weight or the task, and what to do.
    """
    weights = dict(model.named_parameters())
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    for name, weight in trained.items():
        if weight.dtype in (torch.float16, torch.bfloat16):
            raise InputError(
                f"the model's weights are {weight.dtype} ({name} first), which would round away most updates; load it "
                "without dtype=, or call model.float(); to train in half precision use --bf16 or --fp16"
            )
        if name.count(".modules_to_save.") > 1:
            raise InputError(
                f"peft wraps {name} twice and could not load it again: its task_type adds every layer called "
                "classifier to modules_to_save; leave task_type out of the LoraConfig"
            )
    if getattr(model, "_hf_peft_config_loaded", False):  # the public active_adapters() raises if there is none
        raise InputError(
            "model.add_adapter saves checkpoints without the tasks; use peft.get_peft_model(model, config) instead"
        )
    for task in (name for unit in dict.fromkeys(plan) for name in model.members(unit)):
        head = any(f"heads.{task}." in name for name in trained)
        per_task = model.config.encoder_sharing == "per_task"
        encoder = f"encoders.{task}." if per_task else f"{model.base_model_prefix}."
        of_another = re.compile(rf"\.lora_\w+\.({'|'.join(map(re.escape, model.tasks.keys() - {task}))})(\.|$)")
        own = any(encoder in name and not of_another.search(name) for name in trained)
        if not head and not own:
            raise InputError(f"task {task!r} has nothing to train: none of its weights has requires_grad")
        if not head:
            logger.warning(
                f"the head of task {task!r} is not trained: none of its weights has requires_grad (with peft, name it: "
                f'modules_to_save=["heads.{task}"])'
            )
