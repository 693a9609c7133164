"""`MultitaskTrainer`, a `transformers.Trainer` for several tasks: brings together tasks, model, schedule and loss."""

import copy
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput
from transformers.utils import logging

from ..data.collate import Collator, TaskRows, join_rows
from ..data.token_rows import check_labelled, find_tokenizer, join_groups, rows_by_task
from ..evaluation.metrics import (
    decide,
    describe_metric,
    describe_overall,
    finite_rows,
    higher_is_better,
    join_scores,
    overall_score,
    score_decisions,
    score_keys,
    task_metrics,
    task_scores,
)
from ..model.card import model_card
from ..model.encoder import all_finite, share_weights
from ..model.errors import InputError, NonFiniteError
from ..model.kinds import KINDS
from ..model.losses import DIVERGENCES, count_items, labelled_rows, no_label, rows_with_label
from ..model.modeling import MultitaskBertModel, by_name
from .arguments import MultitaskTrainingArguments
from .averaging import AveragedWeights, uses_average
from .callbacks import BestOfEachTask, EpochEnds, StopAtBadStep, TimeEstimate, are_apart
from .checkpoints import list_checkpoints
from .checks import (
    balance_tasks,
    by_task,
    check_collator,
    check_optimizers,
    check_packing,
    check_parts,
    check_plan,
    check_training,
    eval_rows,
    loss_functions,
    train_rows,
)
from .conflicts import GradientCosines
from .finite import FirstBadStep
from .graphs import StepGraphs, Terms, check_graphs
from .hub import CARD, base_license, card_settings, last_scores, open_repo, push_folder
from .optim import paper_optimizer, split_rates
from .randomness import keeps_generators
from .schedule import PlanSampler, describe, first_steps, log_interval
from .smart import DropoutMasks, MomentumTeacher, each_row_twice, smart_penalty
from .terminal import TrainingTable

logger = logging.get_logger(__name__)
SHOWN_ROWS = 8  # the most rows that a message names


class MultitaskTrainer(Trainer):
    """Trains a `MultitaskBertModel` on a plan of its tasks' batches; each step is one task or one group of tasks.

    It takes every argument of `transformers.Trainer`, or refuses it at construction (table in docs/trainer.md). Rows
    and functions, which Trainer takes for one task, may be {task: …} here.

    Args:
        model: its `tasks` give each task's number of epochs. Also a model that `peft.get_peft_model` made of one
            (docs/reuse.md).
        args: the schedule, its budget, and everything `TrainingArguments` has.
        train_dataset: {task: rows} of every task of the model, raw or tokenised (the rule is in `data/token_rows.py`);
            or the rows of the one task that the model has. The raw rows of a group may be given once, as {group: rows}.
            Of a `DatasetDict` its training split is taken.
        eval_dataset: the dev rows, in the same form; needed for evaluation. Of a `DatasetDict` the first split whose
            name begins with "val" or "dev" is taken.
        processing_class: the tokenizer; needed for raw rows, and saved with every checkpoint. For raw rows the default
            is the one beside the checkpoint that the model was loaded from.
        data_collator: rows of one task -> a batch with the keys of `Collator`, which is the default.
        model_init: refused.
        compute_loss_func: (outputs, labels, num_items_in_batch) -> the loss of a batch, or {task: such a function}. It
            sums over the batch's rows and divides by `num_items_in_batch`, so that the micro-batches of a step add up.
            A row without a label has the label -100, or NaN if labels are scores. It also gives `eval_{task}_loss`.
        compute_metrics: `EvalPrediction` of a task's labelled rows, with logits as predictions -> {key: number}, or
            {task: such a function}. The numbers become `eval_{task}_{key}`; `metric_for_best_model` may be one of them.
        callbacks: callbacks to add.
        optimizers: an optimizer of the model's parameters, and its learning rate schedule; None for the default.
        optimizer_cls_and_kwargs: an optimizer's class and settings, instead of `args.optim`.
        preprocess_logits_for_metrics: refused.
        plan: the task or group of each step, instead of the plan of `args.schedule`; the tasks' `epochs` and
            `args.budget` then have no effect.

    Raises:
        InputError: an argument is wrong, missing, or would be ignored. Nothing has been computed or written by then.
    """

    def __init__(
        self,
        model: MultitaskBertModel | None = None,
        args: MultitaskTrainingArguments | None = None,
        train_dataset: Mapping[str, Dataset] | Dataset | None = None,
        eval_dataset: Mapping[str, Dataset] | Dataset | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: Callable | None = None,
        model_init: None = None,
        compute_loss_func: Callable | Mapping[str, Callable] | None = None,
        compute_metrics: Callable | Mapping[str, Callable] | None = None,
        callbacks: Sequence[TrainerCallback] | None = None,
        optimizers: tuple = (None, None),
        optimizer_cls_and_kwargs: tuple[type, dict] | None = None,
        preprocess_logits_for_metrics: None = None,
        plan: Sequence[str] | None = None,
    ):
        refused = {"model_init": model_init, "preprocess_logits_for_metrics": preprocess_logits_for_metrics}
        check_parts(model, args, refused)
        processing_class = processing_class or find_tokenizer(model, train_dataset, eval_dataset)
        train, dev = self.prepare_rows(train_dataset, eval_dataset, model, args, processing_class)
        args = self.plan_steps(model, args, {name: len(rows) for name, rows in train.items()}, plan)
        self.loss_functions = loss_functions(compute_loss_func, model.tasks)
        self.metric_functions = by_task(compute_metrics, model.tasks, "compute_metrics")
        check_training(model, args, self.plan, self.metric_functions)
        check_optimizers(model, args, optimizers, optimizer_cls_and_kwargs)
        for rows in (train, dev) if data_collator is not None else ():
            check_collator(data_collator, rows)
        if args.cuda_graphs:
            check_graphs(model, args, {"compute_loss_func": compute_loss_func, "data_collator": data_collator})
        if args.paper_optimizer:
            optimizer_cls_and_kwargs = paper_optimizer(args)
        self.begin_record()
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or self.new_collator(model, args),
            train_dataset=TaskRows(train),
            eval_dataset=dev,
            processing_class=processing_class,
            callbacks=list(callbacks or ()),
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self.add_keepers()
        self.add_callbacks()

    @staticmethod
    def prepare_rows(
        train_dataset: Mapping[str, Dataset] | Dataset | None,
        eval_dataset: Mapping[str, Dataset] | Dataset | None,
        model: MultitaskBertModel,
        args: MultitaskTrainingArguments,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> tuple[dict[str, Dataset], dict[str, Dataset]]:
        """The rows to train on and those to evaluate on, tokenised: {task or group: rows}."""
        with args.main_process_first(desc="tokenising"):  # the other processes read the tokens from the cache
            train = train_rows(train_dataset, model, args, tokenizer)
            dev = eval_rows(eval_dataset, model, args, tokenizer)
        balance_tasks(model, train)
        return join_groups(train, model, "train_dataset", "train"), join_groups(dev, model, "eval_dataset")

    @staticmethod
    def new_collator(model: MultitaskBertModel, args: MultitaskTrainingArguments) -> Collator:
        """The default collator. It makes a batch's packing if the encoder takes one."""
        tasks = model.tasks
        twice = [unit for unit, names in model.units.items() if any(tasks[name].rdrop_weight for name in names)]
        return Collator(model.config.pad_token_id or 0, packs=model.takes_packing, twice=twice, rounds=args.cuda_graphs)

    def plan_steps(
        self,
        model: MultitaskBertModel,
        args: MultitaskTrainingArguments,
        rows: dict[str, int],
        plan: Sequence[str] | None,
    ) -> MultitaskTrainingArguments:
        """Set `self.plan` to the given plan, or to the schedule's for {task or group: number of training rows}.

        Returns:
            A copy of the arguments with the values that depend on the plan: `max_steps` is its length, so that Trainer
            neither stops early nor repeats it.
        """
        self.rows = rows
        self.epochs = {unit: model.tasks[names[0]].epochs for unit, names in model.units.items()}
        self.batch_size, self.data_seed = args.total_train_batch_size, args.plan_seed
        if plan is None:
            self.batches, plan = args.lay_plan(self.rows, self.epochs)
            check_plan(plan, self.rows, f"the plan of --schedule {args.schedule}")
        else:
            check_plan(plan, self.rows, "plan")
            self.batches = {name: list(plan).count(name) for name in self.rows}
        self.plan = first_steps(plan, args.max_steps)
        if args.max_steps > len(plan):
            found = f"max_steps is {args.max_steps:,}, but the plan has {len(plan):,} steps"
            logger.warning(f"{found}; raise the tasks' epochs to train longer")
        for name in self.rows.keys() - set(self.plan):
            logger.warning(f"{name} gets no batch in this plan, so its head stays untrained")
        args = copy.copy(args)
        args.max_steps = len(self.plan)
        if args.logging_steps == -1:
            args.logging_steps = log_interval(len(self.plan))
        for name in ("logging_steps", "eval_steps", "save_steps"):
            if 0 < (getattr(args, name) or 0) < 1:  # a share; Trainer compares it with a checkpoint's steps
                setattr(args, name, math.ceil(args.max_steps * getattr(args, name)))
        args.greater_is_better = higher_is_better(model.tasks, args.metric_for_best_model, args.greater_is_better)
        return args

    def begin_record(self) -> None:
        """Create the values that training keeps for its log and for the next evaluation."""
        self.step_rows: Tensor | None = None  # number of labelled rows of the step
        self.sums: dict[str, tuple] = {}  # {key of the log: (sum, number of micro-batches)} since the last log entry
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}  # {task: [(logits, labels)]} since the last log entry
        self.evaluated: dict[str, tuple] = {}  # {task or group: (its steps, output)} of the last evaluation in training

    def add_keepers(self) -> None:
        """Create the objects that keep state from step to step beside the model: the first bad step, and those that
        flags or SMART's Bregman term need."""
        model, args = self.model, self.args
        self.bad = FirstBadStep(scaled=self.accelerator.mixed_precision == "fp16")
        self.averaging = AveragedWeights(model, args.ema_decay, args.ema_start) if args.ema_decay else None
        self.cosines = GradientCosines(self, args.gradient_cosine_steps) if args.gradient_cosine_steps else None
        bregman = any(task.bregman_weight for task in model.tasks.values())
        self.teacher = MomentumTeacher(model, args.bregman_momentum) if bregman else None
        self.graphs = StepGraphs(self.step_terms) if args.cuda_graphs else None

    def add_callbacks(self) -> None:
        """Add our callbacks. The printed table replaces Trainer's dictionaries; in a notebook Trainer's table stays.

        Their order counts: `StopAtBadStep` comes after those that request a save and before those that save, and
        `BestOfEachTask` last, so that training ends with its weights.
        """
        self.table = TrainingTable(self.model.tasks, self.plan)
        for callback in self.callback_handler.callbacks:
            if type(callback) in (PrinterCallback, ProgressCallback):
                self.remove_callback(callback)
                self.add_callback(self.table)
                break
        self.add_callback(TimeEstimate())
        if self.args.early_stopping_patience:
            patience, threshold = self.args.early_stopping_patience, self.args.early_stopping_threshold
            self.add_callback(EarlyStoppingCallback(patience, threshold))
        if self.args.evaluates_epoch_ends:
            self.add_callback(EpochEnds(self.plan, self.rows, self.batch_size))
        self.add_callback(StopAtBadStep(self.check_numbers))
        for keeper in filter(None, (self.teacher, self.averaging, self.cosines, self.graphs)):
            self.add_callback(keeper)
        if are_apart(self.model) and self.args.load_best_model_at_end:
            self.add_callback(BestOfEachTask())

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Overridden for --head_learning_rate and --layer_decay."""
        given, args = self.optimizer, self.args
        optimizer = super().create_optimizer(model)
        if given is None and args.has_own_rates:
            split_rates(optimizer, self.model, args.learning_rate, args.head_learning_rate, args.layer_decay)
        return optimizer

    def describe_plan(self) -> str:
        """The plan as a table: each task's rows, epochs, batches and share of the steps."""
        return describe(self.plan, self.rows, self.epochs, self.batch_size)

    def describe_kept(self) -> str:
        """Which step's weights training ended with, in words."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, BestOfEachTask) and callback.kept:
                return "the best of each task, " + ", ".join(f"{task} of step {n}" for task, n in callback.kept.items())
        step, last = self.state.best_global_step, self.state.global_step
        if not step or not self.args.load_best_model_at_end:
            return f"step {last}, the last"
        return f"step {step} of {last}, the best by {self.args.metric_for_best_model} ({self.state.best_metric:.4f})"

    def get_train_dataloader(self) -> DataLoader:
        """Overridden because `PlanSampler` splits each batch over the processes itself. Accelerate distributes whole
        batches: processes would get different tasks, and rows of short batches would be lost."""
        sampler = PlanSampler(
            self.plan,
            self.rows,
            self.batch_size,
            seed=self.data_seed,
            accumulation=self.args.gradient_accumulation_steps,
            rank=self.args.process_index,
            processes=self.args.world_size,
        )
        options = self.args.loader_options
        return DataLoader(self.train_dataset, batch_sampler=sampler, collate_fn=self.data_collator, **options)

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Overridden because a batch has rows of one task: the trainer's own rows are asked for by its name.

        Args:
            eval_dataset: name of a task or a group of the trainer's `eval_dataset`; or tokenised rows of one task. May
                be left out if there is only one.

        Raises:
            InputError: there are no such rows.
        """
        names = list(self.eval_dataset)
        if eval_dataset is None and len(names) == 1:
            eval_dataset = names[0]
        if (eval_dataset is None or isinstance(eval_dataset, (str, Mapping))) and eval_dataset not in names:
            known = f"name one of {', '.join(names)}" if names else "the trainer has no eval_dataset"
            raise InputError(f"get_eval_dataloader gives batches of one task: {known}")
        return super().get_eval_dataloader(eval_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, dict[str, Tensor] | None]:
        """Overridden to move a step's batches to the device without waiting for it, and to count their labels by task.

        Trainer counts labels that are not -100. Here -100 may be a score, and a missing score is NaN. With class
        weights the count is the sum of the labels' weights. Counts are those of the whole step, over all processes and
        accumulation steps, so the loss is torch's (weighted) mean however the step is split.

        Returns:
            The step's micro-batches, and {task: divisor of its summed loss} for each task of the step.
        """
        batches = list(islice(epoch_iterator, num_batches))
        if not batches:
            return batches, None
        labels = [by_name(batch["labels"], batch["task"]) for batch in batches]
        weights = {name: self.model.tasks[name].loss_options.get("class_weights") for name in labels[0]}
        weights = {name: None if own is None else torch.tensor(own) for name, own in weights.items()}
        counts = [
            torch.stack([rows_with_label(each).sum(), *(count_items(each[name], weights[name]) for name in weights)])
            for each in labels
        ]
        total = sum(counts)
        on_cuda = device.type == "cuda"  # elsewhere memory may be freed before it is copied (pytorch#189690, mps)
        total = (total.pin_memory() if on_cuda else total).to(device, non_blocking=on_cuda)
        batches = send_to_device(batches, device, non_blocking=on_cuda)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:  # else each process has its own mean
            total = self.accelerator.gather(total[None]).sum(0)
        self.step_rows, *items = total
        return batches, dict(zip(weights, items, strict=True))

    @cached_property
    def layer_parameters(self) -> int:
        """Number of the model's parameters without embeddings."""
        return self.model.num_parameters(exclude_embeddings=True)

    def floating_point_ops(self, inputs: Mapping[str, Any]) -> int:
        """Overridden to count the parameters only once: it takes .3 ms, and Trainer does it for every micro-batch."""
        return 6 * inputs["input_ids"].numel() * self.layer_parameters

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | float | None = None) -> Tensor | float | None:
        """Overridden to note a gradient norm that is not a finite number. Trainer computes the norm in every step, but
        no public method sees it."""
        norm = super()._get_grad_norm(model, grad_norm)
        self.bad.note_norm(norm, self.state.global_step + 1)
        return norm

    def check_numbers(self, weights: bool = False) -> None:
        """Stop, in all processes together, if a step had a loss or a gradient norm that is not a finite number.

        Args:
            weights: also check the weights. Before a save this is needed, since no loss has seen the last update.

        Raises:
            NonFiniteError: names the step, its task and rows; or the first such weight.
        """
        found = self.bad.read(self.accelerator)
        if found is None and weights:
            self.check_finite_weights()
        if found is None:
            return
        step, task = found[0], self.plan[found[0] - 1]
        sampler = PlanSampler(self.plan, self.rows, self.batch_size, seed=self.data_seed)
        keys = next(islice(sampler, step - 1, None))
        rows = {key[1]: row for key, row in zip(keys, self.train_dataset.__getitems__(keys), strict=True)}
        checkpoint = next(reversed(list_checkpoints(Path(self.args.output_dir)).values()), None)
        raise NonFiniteError(
            f"{found[1]} at step {step}, a batch of task {task!r} (rows {name_rows(rows)}); "
            f"lower --learning_rate ({self.args.learning_rate:g}) or check these rows; "
            + (f"the last checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet")
        )

    @uses_average
    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Overridden to save nothing after a number that is not finite, to remove training_args.bin (a pickle, unsafe
        to load and not needed here), and to give an adapter's weights the permissions of other files.

        Raises:
            NonFiniteError: the loss or gradient norm of a step, or a weight, is not a finite number.
        """
        if self.is_in_train:
            self.check_numbers()
        self.check_finite_weights()
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)
            keepers = (self.averaging, self.teacher) if self.is_in_train and not self.args.save_only_model else ()
            for keeper in filter(None, keepers):
                keeper.save(folder)
            share_weights(folder)

    def check_finite_weights(self) -> None:
        """Refuse weights that are not finite numbers.

        Raises:
            NonFiniteError: names the first such weight.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return  # each process has only a part of the weights, and all processes must stop together
        for name, weight in self.model.named_parameters():
            if not all_finite(weight):
                step = self.state.global_step
                raise NonFiniteError(f"weight {name} is not finite after step {step}; lower --learning_rate")

    def training_step(
        self, model: nn.Module, inputs: Mapping, num_items_in_batch: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Overridden to replay a CUDA graph if there is one (`graphs.py`)."""
        terms = self.graphs and self.graphs.step(model.train(), inputs, num_items_in_batch, self.step_rows)
        if terms is None:  # without --cuda_graphs, or without a graph of these shapes
            return super().training_step(model, inputs, num_items_in_batch)
        if callable(getattr(self.optimizer, "train", None)):  # as Trainer does, for schedule-free optimizers
            self.optimizer.train()
        self.note(terms, inputs)
        return terms.loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Mapping[str, Tensor] | Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Overridden to sum the losses of a step's tasks, to add the terms of distillation, SMART and R-Drop in
        training, and to keep losses and predictions for the log without waiting for the device.

        As in Trainer, a loss is divided by the labelled rows (or the sum of their class weights) of the whole step,
        over all processes and accumulation steps.
        """
        if type(self.data_collator) is not Collator:
            check_packing(inputs)
        terms, outputs = self.loss_terms(model, inputs, by_name(num_items_in_batch, inputs["task"]), self.step_rows)
        if model.training:
            self.note(terms, inputs)
        return (terms.loss, outputs) if return_outputs else terms.loss

    def step_terms(self, model: nn.Module, inputs: Mapping, items: Mapping, rows: Tensor) -> Terms:
        """The part of a training step that a CUDA graph records: `loss_terms` under Trainer's autocast."""
        with self.compute_loss_context_manager():
            return self.loss_terms(model, inputs, items, rows)[0]

    def loss_terms(
        self, model: nn.Module, inputs: Mapping, items: Mapping[str, Tensor | int], rows: Tensor | None
    ) -> tuple[Terms, Mapping]:
        """The loss of a batch with its values for the log, and the model's outputs. It changes no state and does not
        wait for the device.

        Args:
            model: in training or evaluation mode.
            inputs: the batch.
            items: {task: divisor of its summed loss}; a task without one uses `count_items` of its labels.
            rows: number of labelled rows of the step that the batch is a share of.
        """
        inputs, unit = dict(inputs), inputs["task"]
        labels = by_name(inputs.pop("labels"), unit)
        soft = by_name(inputs.pop("soft_labels", None), unit)  # a teacher's predictions; the model does not take them
        tasks, training = [self.model.tasks[name] for name in labels], model.training
        passes = 1 + (training and any(task.rdrop_weight for task in tasks))
        shared = training and self.args.smart_share_dropout and any(task.smart_weight for task in tasks)
        masks = DropoutMasks(inputs["input_ids"]) if shared else None
        outputs = model(**(each_row_twice(inputs) if passes == 2 else inputs))
        # DistributedDataParallel averages the processes' gradients, but `items` are those of all processes.
        scale = self.accelerator.num_processes if items and self.args.average_tokens_across_devices else 1
        targets = each_row_twice(labels) if passes == 2 else labels  # R-Drop's loss is the mean over both passes
        losses = {
            name: scale * self.batch_loss(name, outputs, target, passes * items[name] if name in items else None)
            for name, target in targets.items()
        }
        kept, predicted = {f"loss_{name}": loss for name, loss in losses.items()}, {}
        if training:
            logits = {name: values.chunk(passes) for name, values in by_name(outputs["logits"], unit).items()}
            labelled = rows_with_label(labels).sum()
            rows = rows if items else labelled  # outside of Trainer's steps, the batch is the whole step
            share = labelled / rows.clamp(min=1) * scale
            # A term is a mean over rows, so it counts by the micro-batch's share of its step's. The log has no weights.
            for term, name, value in self.further_terms(inputs, logits, soft, masks, rows):
                kept[f"{term}_{name}"] = share * value
                weight = getattr(self.model.tasks[name], f"{term}_weight")
                rest = 1 - weight if term == "distill" else 1
                losses[name] = rest * losses[name] + weight * share * value
            predicted = {name: values[0].detach().float() for name, values in logits.items()}
        loss = sum((task.loss_weight if training else 1) * losses[task.name] for task in tasks)
        return Terms(loss, kept, predicted), outputs

    def note(self, terms: Terms, inputs: Mapping) -> None:
        """Keep a micro-batch's losses, predictions and labels for the log; note a loss that is not finite."""
        for name, value in terms.kept.items():
            total, count = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value.detach(), count + 1)
        labels = by_name(inputs["labels"], inputs["task"])
        if self.args.logging_strategy != "no":
            for name, logits in terms.predicted.items():
                self.seen.setdefault(name, []).append((logits, labels[name]))
        self.bad.note_loss(terms.loss, self.state.global_step + 1)

    def batch_loss(self, name: str, outputs: Mapping, labels: Tensor, items: Tensor | int | None) -> Tensor:
        """A task's loss of a batch: its own, or the user's `compute_loss_func`.

        Args:
            name: the task.
            outputs: the model's outputs.
            labels: the task's labels.
            items: divisor of the summed loss; None for `count_items` of the labels.
        """
        logits = by_name(outputs["logits"], name)[name]
        if name not in self.loss_functions:
            return self.model.task_loss(name, logits, labels, items)
        own = SequenceClassifierOutput(**{**outputs, "logits": logits})
        return self.loss_functions[name](
            own, labels, num_items_in_batch=count_items(labels) if items is None else items
        )

    def further_terms(
        self,
        inputs: Mapping,
        logits: Mapping[str, Sequence[Tensor]],
        soft: Mapping[str, Tensor],
        masks: DropoutMasks | None,
        rows: Tensor | None,
    ) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (term, task, its mean over the rows) for each term of distillation, SMART and R-Drop that a task has.

        Args:
            inputs: the batch.
            logits: {task: (its clean logits, for R-Drop also those with other dropout masks)}.
            soft: {task: its teacher's predictions}.
            masks: the dropout masks of the clean logits, for SMART's passes to use again; None for new masks.
            rows: number of labelled rows of the step; with --smart_reduction sum a factor of SMART's penalty.
        """
        batch = {key: value for key, value in inputs.items() if key != "input_ids"}
        tasks = [self.model.tasks[name] for name in logits]
        for task in [task for task in tasks if task.name in soft]:
            passes = [KINDS[task.kind].distil(task, each, soft[task.name]) for each in logits[task.name]]
            yield "distill", task.name, torch.stack(passes).mean()
        if smart := [task.name for task in tasks if task.smart_weight]:
            clean = {name: logits[name][0] for name in smart}
            times = rows if self.args.smart_reduction == "sum" else 1
            penalties = self.smart_penalties(inputs["input_ids"], batch, clean, masks)
            for name, penalty in zip(smart, penalties, strict=True):
                yield "smart", name, times * penalty
        if bregman := [task.name for task in tasks if task.bregman_weight]:
            teacher = by_name(self.teacher.logits(input_ids=inputs["input_ids"], **batch), inputs["task"])
            for name in bregman:
                yield "bregman", name, self.divergence(name)(logits[name][0], teacher[name]).mean()
        for name in [task.name for task in tasks if task.rdrop_weight]:
            yield "rdrop", name, self.divergence(name)(logits[name][1], logits[name][0]).mean()

    def divergence(self, name: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The function that compares two predictions of a task."""
        return DIVERGENCES[self.model.tasks[name].divergence]

    def smart_penalties(
        self, input_ids: Tensor, batch: Mapping, clean: Mapping[str, Tensor], masks: DropoutMasks | None
    ) -> Tensor:
        """SMART's penalty of each task, (T,). One perturbation serves all tasks: the ascent raises the sum of their
        divergences.

        Args:
            input_ids: the batch's tokens.
            batch: its other inputs.
            clean: {task: logits}.
            masks: see `penalties`.
        """
        args, words = self.args, self.model.encoder(next(iter(clean))).get_input_embeddings()
        if args.smart_place == "words":
            key, start = "inputs_embeds", words(input_ids)
        else:  # added to the embedding layer's output; each pass computes that, so dropout draws as in the clean pass
            key, start = "perturbation", words.weight.new_zeros(*input_ids.shape, words.weight.shape[1])
            batch = {**batch, "input_ids": input_ids}

        def predict(perturbed: Tensor) -> dict[str, Tensor]:
            """Uses the unwrapped model: DistributedDataParallel allows only one forward pass for each backward."""
            return by_name(self.model(**{key: perturbed}, **batch).logits, batch["task"])

        def compare(perturbed: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Tensor:
            """The divergence of each task's predictions, (T, B)."""
            return torch.stack([self.divergence(name)(perturbed[name], target[name]) for name in target])

        return smart_penalty(
            partial(masks.replay, predict) if masks else predict,
            start,
            batch["attention_mask"],
            clean,
            compare,
            radius=args.smart_radius,
            step_size=args.smart_step_size,
            noise_std=args.smart_noise_std,
            steps=args.smart_steps,
            projection=args.smart_projection,
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Overridden to add values of each task to training logs.

        `loss_{task}`, `distill_{task}`, `smart_{task}`, `bregman_{task}` and `rdrop_{task}` are means over the task's
        steps since the last entry, without weights; the loss is without the other terms. `{metric}_{task}` scores the
        rows trained on since the last entry, by the predictions made in training, with dropout.

        Raises:
            NonFiniteError: a step since the last entry had a loss or gradient norm that is not a finite number.
        """
        if self.is_in_train:
            self.check_numbers()
        if "loss" in logs:
            for name, (total, count) in sorted(self.sums.items()):
                steps = count / self.args.gradient_accumulation_steps
                logs[name] = self.accelerator.gather(total).mean().item() / steps
            for name, batches in sorted(self.seen.items()):
                logits, labels = zip(*batches, strict=True)
                missing = no_label(labels[0].is_floating_point())
                logits, labels = self.gather_rows(logits, 0), self.gather_rows(labels, missing)
                task, labelled = self.model.tasks[name], labelled_rows(labels)
                labelled &= finite_rows(logits)  # fp16's scaler skips steps that are not finite
                if not labelled.any():
                    continue
                with warnings.catch_warnings(action="ignore"):  # metrics warn if the few rows are all of one class
                    found = score_decisions(task, decide(task, logits[labelled]), labels[labelled])
                logs[f"{task.metric}_{name}"] = found[task.metric]
            if self.cosines:
                logs |= self.cosines.take()
            self.sums.clear()
            self.seen.clear()
            self._tr_loss.zero_()  # Trainer's `_tr_loss -= _tr_loss` would keep the NaN of a step that fp16 skipped
        if self.bad.scaled:  # steps that fp16's scaler skipped have no loss or gradient norm to log
            for key in [key for key, value in logs.items() if isinstance(value, float) and not math.isfinite(value)]:
                del logs[key]
        super().log(logs, start_time)

    def gather_rows(self, batches: Sequence[Tensor], fill: float) -> np.ndarray:
        """The rows of the batches of all processes as one array. Batches with values for each token may have different
        widths, and processes different numbers of rows; both are padded with `fill`."""
        values = join_rows(batches, fill)
        for dim in (1, 0):
            values = self.accelerator.pad_across_processes(values, dim=dim, pad_index=fill)
        return self.accelerator.gather(values).cpu().numpy()

    @keeps_generators
    @uses_average
    def evaluate(
        self,
        eval_dataset: Mapping[str, Dataset] | Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Overridden because Trainer scores each dataset separately, without an overall score to select the best
        checkpoint.

        Args:
            eval_dataset: {task: rows}, or rows of one task, raw or tokenised; by default the trainer's. The tasks of a
                group are evaluated together if all of them have rows.
            ignore_keys: outputs of the model to leave out of the predictions.
            metric_key_prefix: prefix of every key.

        Returns:
            `eval_{task}_loss`, `eval_{task}_{metric}` and the numbers of `compute_metrics` for every task,
            `eval_overall`, and `eval_runtime` in seconds.

        Raises:
            InputError: there are no rows to evaluate on, or rows of an unknown task.
            NonFiniteError: a prediction is not a finite number.
        """
        start = time.perf_counter()
        if eval_dataset is None:  # passes the trainer's own by name: Trainer keeps persistent loaders under these names
            loaders = {name: name for name in self.eval_dataset}
        else:
            loaders = rows_by_task(eval_dataset, self.model, "eval_dataset", "dev", self.processing_class)
            check_labelled(loaders, "eval_dataset")
            loaders = join_groups(loaders, self.model, "eval_dataset")
        if not loaders:
            raise InputError("there is nothing to evaluate on: give {task: rows}, or the trainer an eval_dataset")
        steps = Counter(self.plan[: self.state.global_step])
        # With an encoder or adapter for each task, a step changes the weights of one task, so the others still have the
        # predictions of the last evaluation; not with --ema_decay, where every step changes the mean of all weights.
        reuse = self.is_in_train and eval_dataset is None and self.averaging is None and are_apart(self.model)
        known = {name: output for name, (before, output) in self.evaluated.items() if reuse and before == steps[name]}
        new = {name: self.get_eval_dataloader(rows) for name, rows in loaders.items() if name not in known}
        self.table.expect(self.args, sum(map(len, new.values())), "evaluating")
        for name in loaders:
            prefix = f"{metric_key_prefix}_{name}" if name in self.model.tasks else metric_key_prefix
            if name in new:
                known[name] = self.evaluation_loop(new[name], f"Evaluation of {name}", False, ignore_keys, prefix)
            if reuse:
                self.evaluated[name] = (steps[name], known[name])
        metrics = self.join_metrics({name: known[name] for name in loaders}, metric_key_prefix)
        self.check_best(metrics)
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - start, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def join_metrics(self, outputs: Mapping[str, EvalLoopOutput], metric_key_prefix: str) -> dict[str, float]:
        """The metrics of {task or group: output of `evaluation_loop`} in one dictionary, with the overall score."""
        parts, trainers = [output.metrics for output in outputs.values()], "_model_preparation_time"
        parts = [{key: value for key, value in part.items() if not key.endswith(trainers)} for part in parts]
        metrics = join_scores(*parts)
        tasks = {name: self.model.tasks[name] for unit in outputs for name in self.model.members(unit)}
        keys = score_keys(tasks, metric_key_prefix)
        scores = {name: {task.metric: metrics[keys[name]]} for name, task in tasks.items()}
        return metrics | {keys["overall"]: overall_score(tasks, scores)}

    def check_best(self, metrics: Mapping[str, float]) -> None:
        """Raises InputError if the evaluation does not give `metric_for_best_model`. It may be one of
        `compute_metrics`, so it is known only now."""
        best = f"eval_{(self.args.metric_for_best_model or 'overall').removeprefix('eval_')}"
        if self.is_in_train and best not in metrics:
            raise InputError(f"--metric_for_best_model is {best!r}, but the evaluation gives {', '.join(metrics)}")

    @keeps_generators
    @uses_average
    def predict(
        self,
        test_dataset: Mapping[str, Dataset] | Dataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
    ) -> PredictionOutput:
        """Overridden to check the rows, which may lack labels, and to restore the random generators.

        The rows are those of one task or one group ({task: rows} or {group: rows}). For a group, predictions and labels
        are {task: array}.

        Returns:
            Predictions, labels and metrics. The metrics have the scores of the labelled rows, as `evaluate` gives them:
            `test_loss` and `test_{metric}`; for a group `test_{task}_loss` and `test_{task}_{metric}`. Without a label
            they have neither.

        Raises:
            InputError: names what is wrong with the rows.
            NonFiniteError: a prediction is not a finite number.
        """
        rows = rows_by_task(test_dataset, self.model, "test_dataset", "test", self.processing_class)
        rows = join_groups(rows, self.model, "test_dataset")
        if len(rows) != 1:
            raise InputError(f"test_dataset has {len(rows)} tasks; predict takes the rows of one task or group")
        return super().predict(*rows.values(), ignore_keys, metric_key_prefix)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Overridden to call `compute_metrics` with the labelled rows of each task, to score these rows, and to refuse
        predictions that are not finite numbers, which metrics would not notice.

        Trainer's loss is left out: it is the mean over all rows, and counts those without a label.

        Raises:
            NonFiniteError: names the task and the rows.
        """
        rows = dataloader.dataset
        unit = rows[0]["task"]
        tasks = {name: self.model.tasks[name] for name in self.model.members(unit)}
        functions = {name: self.metric_functions[name] for name in tasks if name in self.metric_functions}
        self.compute_metrics = partial(task_metrics, functions, tasks, unit) if functions else None
        ignore_keys = ignore_keys or ["hidden_states", "attentions"]
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        for name, predictions in by_name(output.predictions, unit).items():
            if not (finite := finite_rows(predictions)).all():
                wrong = {number: rows[number] for number in np.flatnonzero(~finite)[: SHOWN_ROWS + 1].tolist()}
                raise NonFiniteError(
                    f"{(~finite).sum()} of {len(finite)} predictions of task {name!r} are not finite numbers after "
                    f"step {self.state.global_step} (rows {name_rows(wrong)}); training may have diverged: lower "
                    "--learning_rate, or check the model's weights"
                )
        metrics = {key: value for key, value in output.metrics.items() if key != f"{metric_key_prefix}_loss"}
        found = split_outputs({unit: output})
        for name in [name for name in found if labelled_rows(found[name].label_ids).any()]:
            prefix = metric_key_prefix if name == unit else f"{metric_key_prefix}_{name}"
            scores = self.score_task(name, found[name])
            metrics = join_scores(metrics, {f"{prefix}_{key}": value for key, value in scores.items()})
        return output._replace(metrics=metrics)

    def score(self, outputs: Mapping, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The scores of {task or group: output of `predict`} in one dictionary, with these tasks' overall score."""
        scores = {name: self.score_task(name, output) for name, output in split_outputs(outputs).items()}
        tasks = {name: self.model.tasks[name] for name in scores}
        flat = {f"{metric_key_prefix}_{name}_{key}": value for name in scores for key, value in scores[name].items()}
        return flat | {f"{metric_key_prefix}_overall": overall_score(tasks, scores)}

    def score_task(self, task: str, output: PredictionOutput | EvalLoopOutput) -> dict[str, float]:
        """The loss and the metric of a task's labelled rows; the loss is the user's `compute_loss_func`, if any."""
        values = output.predictions, output.label_ids
        scores = task_scores(self.model.tasks[task], *values)
        return scores | ({"loss": self.mean_loss(task, *values)} if task in self.loss_functions else {})

    def mean_loss(self, task: str, logits: np.ndarray, labels: np.ndarray) -> float:
        """The loss of the user's `compute_loss_func` over all rows of a task at once."""
        logits, labels = (torch.from_numpy(values).to(self.args.device) for values in (logits, labels))
        items = count_items(labels)
        return float(
            self.loss_functions[task](SequenceClassifierOutput(logits=logits), labels, num_items_in_batch=items)
        )

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Overridden to create the repository with clear errors, and to refuse a model of peft's."""
        if hasattr(self.model, "peft_config"):
            raise InputError(
                "the model is a peft adapter, which others could not load with its tasks: merge it, model = "
                "trainer.model.merge_and_unload(), and use model.push_to_hub(…) (docs/reuse.md)"
            )
        if self.is_world_process_zero():
            name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
            private = self.args.hub_private_repo if private is None else private
            self.hub_model_id = open_repo(name, token or self.args.hub_token, private)

    def create_model_card(
        self,
        scores: Mapping[str, tuple] | None = None,
        base_model: str | None = None,
        data: Mapping[str, Mapping] | None = None,
        language: str | list[str] | None = None,
        license: str | None = None,
        dataset: str | list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """Overridden to write a card that describes all tasks: `README.md` in the output folder.

        Args:
            scores: {task: (dev score, lower, upper bound)}; by default those of the last evaluation, without bounds.
            base_model: name of the checkpoint that training started from; by default the model's.
            data: {task: {split: rows and fingerprint}} (see `model_card`).
            language: codes of the languages of the rows, as for Trainer's card.
            license: the Hub's name of the model's licence; by default that of the base model, if its card names one.
            dataset: Hub ids of the data sets that the rows come from.
            kwargs: other arguments of Trainer's card; ignored.
        """
        if not self.is_world_process_zero():
            return
        tasks = self.model.tasks
        card = model_card(
            tasks,
            self.model.config,
            self.hub_model_id or self.args.hub_model_id,
            base_model or self.model.name_or_path,
            scores or last_scores(self.state.log_history, tasks),
            card_settings(self.args, tasks, self.batch_size),
            self.describe_plan(),
            data,
            {name: describe_metric(task) for name, task in tasks.items()} | {"overall": describe_overall(tasks)},
            [dataset] if isinstance(dataset, str) else dataset,
            license or base_license(base_model or self.model.name_or_path),
            language,
        )
        Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
        Path(self.args.output_dir, CARD).write_text(card, encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        *,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Overridden to push only the files that others need (`hub.PUBLIC`), with our card.

        Args:
            commit_message: message of the commit.
            token: with write access; by default `--hub_token`, or the one of this machine.
            revision: branch; by default `--hub_revision`, or main.
            private: whether a new repository is private; by default `--hub_private_repo`.
            kwargs: arguments of `create_model_card`.

        Returns:
            The commit's URL, on the first process.

        Raises:
            InputError: it could not be pushed.
        """
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)  # otherwise `save_model` pushes, too
        self.create_model_card(**kwargs)
        if self.is_world_process_zero():
            revision = revision or self.args.hub_revision
            return push_folder(self.args.output_dir, self.hub_model_id, revision, token, commit_message)


def split_outputs(outputs: Mapping[str, PredictionOutput]) -> dict[str, PredictionOutput]:
    """{task or group: output of `predict`} as {task: its output}."""
    found = {}
    for unit, output in outputs.items():
        labels = by_name(output.label_ids, unit)
        for name, predictions in by_name(output.predictions, unit).items():
            found[name] = PredictionOutput(predictions, labels[name], output.metrics)
    return found


def name_rows(rows: Mapping[int, Mapping]) -> str:
    """The ids of the first rows of {number: row}; the numbers of rows without an id."""
    names = [str(row.get("id", number)) for number, row in rows.items()]
    return ", ".join(names[:SHOWN_ROWS]) + (" …" if len(names) > SHOWN_ROWS else "")
