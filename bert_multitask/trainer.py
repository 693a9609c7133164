"""The one place where tasks, model, schedule and loss meet: a thin subclass of `transformers.Trainer`."""

import copy
import dataclasses
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .arguments import MultitaskTrainingArguments
from .callbacks import BestOfEachTask, EpochEnds, TimeEstimate
from .collate import Collator, TaskRows
from .configuration import InputError
from .heads import MultitaskBertModel
from .hub import HubTrainer
from .losses import DIVERGENCES, UNLABELLED, count_items, is_labelled, no_label
from .metrics import decide, find_metric, higher_is_better, overall_score, score_decisions, task_scores
from .optim import PaperAdamW
from .schedule import SCHEDULES, PlanSampler, count_batches, describe
from .smart import DropoutMasks, MomentumTeacher, smart_penalty
from .tasks import Task

logger = logging.get_logger(__name__)


class MultitaskTrainer(HubTrainer):
    """Trains a `MultitaskBertModel` on a plan of its tasks' batches, one task a step.

    Args:
        model: whose tasks say the epochs of each; or one that `peft.get_peft_model` made of it (docs/reuse.md).
        args: the schedule, its budget, and everything `TrainingArguments` has.
        train_dataset: {task: tokenised rows} of every task of the model.
        eval_dataset: the same of the dev rows; needed for evaluation.
        processing_class: the tokenizer; it is saved with every checkpoint.
        **kwargs: other arguments of `transformers.Trainer`.
    """

    def __init__(
        self,
        model: MultitaskBertModel,
        args: MultitaskTrainingArguments,
        train_dataset: Mapping[str, Dataset],
        eval_dataset: Mapping[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ):
        if not isinstance(args, MultitaskTrainingArguments):
            raise InputError(f"args is a {type(args).__name__}; expected MultitaskTrainingArguments")
        if missing := [name for name in model.tasks if name not in train_dataset]:
            raise InputError(f"train_dataset has no rows of task {missing[0]!r}, which the model has")
        for task in [task for task in model.tasks.values() if task.class_weights == "balanced"]:
            model.change_task(task.balance(train_dataset[task.name]["labels"][:]))
        self.rows = {name: len(train_dataset[name]) for name in model.tasks}
        self.epochs = {name: task.epochs for name, task in model.tasks.items()}
        self.batch_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        self.data_seed = args.data_seed if args.data_seed is not None else args.seed
        self.batches = count_batches(self.rows, self.epochs, self.batch_size, args.budget)
        plan = SCHEDULES[args.schedule](self.batches, self.data_seed)
        self.plan = plan[: args.max_steps] if args.max_steps > 0 else plan
        args = copy.copy(args)  # the caller's stay as they are
        # Trainer repeats a data loader that is shorter than max_steps; the plan is all there is.
        args.max_steps = len(self.plan)
        check_metrics(model.tasks, args)
        args.greater_is_better = higher_is_better(model.tasks, args.metric_for_best_model, args.greater_is_better)
        check_smart(model.tasks, args)
        check_sharding(model, args)
        check_weights(model, self.plan)
        for name in self.rows.keys() - set(self.plan):
            logger.warning(f"{name} gets no batch of this plan; its score is an untrained head's")
        self.step_rows: Tensor | int | None = None  # labelled rows of the step, where its loss is divided by others
        self.sums: dict[str, tuple] = {}
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}  # task -> logits and labels since the last log entry
        self.evaluated: dict[str, tuple] = {}  # task -> its steps by then, and its last evaluation in training
        if args.paper_optimizer:
            adam = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
            kwargs["optimizer_cls_and_kwargs"] = (PaperAdamW, {"lr": args.learning_rate} | adam)
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(model.config.pad_token_id or 0),
            train_dataset=TaskRows(train_dataset),
            eval_dataset=dict(eval_dataset or {}),
            processing_class=processing_class,
            **kwargs,
        )
        self.teacher = None
        if any(task.bregman_weight for task in model.tasks.values()):
            self.teacher = MomentumTeacher(model, args.bregman_momentum)
        self.add_callbacks()

    def add_callbacks(self) -> None:
        """Add what the schedule, the layout and SMART's Bregman term ask for."""
        self.add_callback(TimeEstimate())
        if self.args.schedule == "sequential":
            self.add_callback(EpochEnds(self.plan, self.rows, self.batch_size))
        if self.model.config.encoder_sharing == "per_task" and self.args.load_best_model_at_end:
            self.add_callback(BestOfEachTask())
        if self.teacher:
            self.add_callback(self.teacher)

    def describe_plan(self) -> str:
        """The plan as a table: rows, epochs, batches and share of the steps by task."""
        return describe(self.plan, self.rows, self.epochs, self.batch_size)

    def get_train_dataloader(self) -> DataLoader:
        """Overridden because the sampler deals out the processes' shares itself: Accelerate, which deals whole
        batches, would give the processes different tasks and lose the rows of short batches."""
        sampler = PlanSampler(
            self.plan,
            self.rows,
            self.batch_size,
            seed=self.data_seed,
            accumulation=self.args.gradient_accumulation_steps,
            rank=self.args.process_index,
            processes=self.args.world_size,
        )
        return DataLoader(
            self.train_dataset,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )

    def _get_num_items_in_batch(self, batch_samples: list[dict], device: torch.device) -> Tensor | int | None:
        """Overridden because Trainer counts what is not -100, which may be a score; a missing score is NaN."""
        marked = [
            {"labels": torch.where(is_labelled(batch["labels"]), 0, UNLABELLED)} if "labels" in batch else batch
            for batch in batch_samples
        ]
        return super()._get_num_items_in_batch(marked, device)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Overridden because a task with class weights divides its loss by the sum of the step's weights, over all
        processes and accumulation steps as Trainer counts rows, so that it is torch's weighted mean however it is cut.
        """
        batches, rows = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_rows = rows
        options = self.model.tasks[batches[0]["task"]].loss_options if batches else {}
        if rows is None or "class_weights" not in options:
            return batches, rows
        weights = torch.tensor(options["class_weights"], device=device)
        items = sum(count_items(batch["labels"].to(device), weights) for batch in batches)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            items = self.accelerator.gather(items).sum()
        return batches, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Overridden to add SMART's terms to a training step's loss, and to keep each task's losses and predictions for
        the log.

        Scaling is as Trainer's: the model divides by the labelled rows of the whole step (or by the sum of their class
        weights), all processes and accumulation steps together.
        """
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        task = self.model.tasks[inputs["task"]]
        masks = DropoutMasks(inputs["labels"]) if task.smart_weight and self.args.smart_share_dropout else None
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.keep(f"loss_{task.name}", loss)
        if self.args.logging_strategy != "no":
            self.seen.setdefault(task.name, []).append((outputs["logits"].detach().float(), inputs["labels"]))
        rows = is_labelled(inputs["labels"]).sum()
        items = self.step_rows if task.class_weights else num_items_in_batch
        share = rows if items is None else rows / items
        if self.args.average_tokens_across_devices:
            share = share * self.accelerator.num_processes  # as Trainer scales the loss: DDP takes the processes' mean
        for name, weight, penalty in self.penalties(task, inputs, outputs["logits"], masks):
            self.keep(f"{name}_{task.name}", share * penalty)
            loss = loss + weight * share * penalty
        return (loss, outputs) if return_outputs else loss

    def penalties(
        self, task: Task, inputs: Mapping, logits: Tensor, masks: DropoutMasks | None
    ) -> Iterator[tuple[str, float, Tensor]]:
        """Yield (name, weight, mean over the rows) of each of SMART's terms that the task has.

        Args:
            task: of the batch.
            inputs: the batch.
            logits: the clean predictions.
            masks: the dropout masks that gave them, for SMART's passes to drop the same; None to draw others.
        """
        args, divergence = self.args, DIVERGENCES[task.divergence]
        batch = {key: inputs[key] for key in ("task", "attention_mask", "token_type_ids")}
        if task.smart_weight:

            def predict(embeddings: Tensor) -> Tensor:
                """By the bare model: DistributedDataParallel allows one forward for each backward."""
                return self.model(inputs_embeds=embeddings, **batch).logits

            embeddings = self.model.encoder(task.name).embeddings.word_embeddings(inputs["input_ids"])
            penalty = smart_penalty(
                partial(masks.replay, predict) if masks else predict,
                embeddings,
                inputs["attention_mask"],
                logits,
                divergence,
                radius=args.smart_radius,
                step_size=args.smart_step_size,
                noise_std=args.smart_noise_std,
                steps=args.smart_steps,
                projection=args.smart_projection,
            )
            yield "smart", task.smart_weight, penalty
        if task.bregman_weight:
            teacher = self.teacher.logits(input_ids=inputs["input_ids"], **batch)
            yield "bregman", task.bregman_weight, divergence(logits, teacher).mean()

    def keep(self, name: str, value: Tensor) -> None:
        """Add a micro-batch's value to what the next log entry is the mean of."""
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = (total + value.detach(), count + 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Overridden to add to training logs, as means over a task's steps since the last entry: `loss_{task}` without
        SMART's terms, `smart_{task}` and `bregman_{task}` without their weights; and `{metric}_{task}` of the rows
        trained on since, as predicted in training, with dropout."""
        if "loss" in logs:
            for name, (total, count) in sorted(self.sums.items()):
                steps = count / self.args.gradient_accumulation_steps
                logs[name] = self.accelerator.gather(total).mean().item() / steps
            for name, batches in sorted(self.seen.items()):
                logits, labels = (self.gather_rows(torch.cat(column)) for column in zip(*batches, strict=True))
                task, labelled = self.model.tasks[name], is_labelled(labels)
                if not np.isfinite(logits[labelled]).all():
                    continue  # a step that fp16's scaler skipped: no value is better than a wrong one
                with warnings.catch_warnings(action="ignore"):  # a few rows may well be of one class
                    found = score_decisions(task, decide(task, logits[labelled]), labels[labelled])
                logs[f"{task.metric}_{name}"] = found[task.metric]
            self.sums.clear()
            self.seen.clear()
        super().log(logs, start_time)

    def gather_rows(self, values: Tensor) -> np.ndarray:
        """The rows of all processes, which may have different numbers of them: filled up with unlabelled ones."""
        missing = no_label(values.is_floating_point())
        padded = self.accelerator.pad_across_processes(values, pad_index=missing)
        return self.accelerator.gather(padded).cpu().numpy()

    def evaluate(
        self,
        eval_dataset: Mapping[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Overridden because Trainer scores several datasets apart, so that no overall score could pick the best.

        Args:
            eval_dataset: {task: tokenised rows}; by default the trainer's.
            ignore_keys: outputs of the model to leave out of the predictions.
            metric_key_prefix: start of every key.

        Returns:
            `eval_{task}_loss` and `eval_{task}_{metric}` of every task, `eval_overall`, `eval_runtime` in seconds.
        """
        start = time.perf_counter()
        # Of the trainer's own datasets Trainer wants the names, under which it keeps persistent loaders.
        loaders = {name: name for name in self.eval_dataset} if eval_dataset is None else eval_dataset
        steps = Counter(self.plan[: self.state.global_step])
        # With an encoder for each task a step changes one task; the others predict what they did before.
        reuse = self.is_in_train and eval_dataset is None and self.model.config.encoder_sharing == "per_task"
        outputs = {}
        for name, rows in loaders.items():
            before, outputs[name] = self.evaluated.get(name, (None, None))
            if not reuse or before != steps[name]:
                loader = self.get_eval_dataloader(rows)
                outputs[name] = self.evaluation_loop(loader, f"Evaluation of {name}", False, ignore_keys)
                self.callback_handler.on_predict(self.args, self.state, self.control, {})  # ends its progress bar
            if reuse:
                self.evaluated[name] = (steps[name], outputs[name])
        metrics = self.score(outputs, metric_key_prefix)
        metrics[f"{metric_key_prefix}_runtime"] = round(time.perf_counter() - start, 3)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def score(self, outputs: Mapping, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The flat scores of {task: output of `predict`}, with the overall score of those tasks."""
        tasks = {name: self.model.tasks[name] for name in outputs}
        scores = {
            name: task_scores(task, outputs[name].predictions, outputs[name].label_ids) for name, task in tasks.items()
        }
        flat = {f"{metric_key_prefix}_{name}_{key}": value for name in scores for key, value in scores[name].items()}
        return flat | {f"{metric_key_prefix}_overall": overall_score(tasks, scores)}


def check_metrics(tasks: Mapping[str, Task], args: MultitaskTrainingArguments) -> None:
    """Refuse metrics that no evaluation would give, before anything is computed."""
    for task in tasks.values():
        find_metric(task)
    keys = [f"{name}_{key}" for name, task in tasks.items() for key in (task.metric, "loss")] + ["overall"]
    if args.load_best_model_at_end and args.metric_for_best_model.removeprefix("eval_") not in keys:
        raise InputError(f"--metric_for_best_model is {args.metric_for_best_model!r}; choose one of {', '.join(keys)}")


def check_smart(tasks: Mapping[str, Task], args: MultitaskTrainingArguments) -> None:
    """Point out SMART's flags where no task has SMART, and a perturbation that half precision rounds away: it keeps 8
    to 11 bits of hidden states near 1."""
    flags = {field.name: field.default for field in dataclasses.fields(args) if field.name.startswith("smart_")}
    if not any(task.smart_weight for task in tasks.values()):
        for name, default in flags.items():
            if getattr(args, name) != default:
                logger.warning(f"--{name} does nothing: no task has a --smart_weight")
    elif (args.bf16 or args.fp16) and args.smart_projection == "ball" and args.smart_radius < 1e-3:
        logger.warning(
            f"--smart_radius {args.smart_radius:g} is lost in the rounding of --bf16 or --fp16, and SMART compares "
            "little more than dropout masks; a radius from 1e-3 up is kept (docs/results.md)"
        )


def check_sharding(model: MultitaskBertModel, args: MultitaskTrainingArguments) -> None:
    """Refuse what would go wrong, mostly without a word, where processes share one model's weights or gradients."""
    per_task = model.config.encoder_sharing == "per_task"
    if per_task and (args.deepspeed or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")):
        raise InputError(
            "--encoder_sharing per_task does not work with DeepSpeed: it gives idle encoders gradients of zeros, by "
            "which Adam would still move them; use recipes/accelerate/multi_gpu.yaml"
        )
    if not (args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")):
        return
    refused = {
        "--smart_weight": any(task.smart_weight for task in model.tasks.values()),  # calls parts of the model by hand
        "--bregman_weight": any(task.bregman_weight for task in model.tasks.values()),  # averages whole weights
        "--encoder_sharing per_task with --load_best_model_at_end": per_task and args.load_best_model_at_end,
        "a CPU, where Accelerate would leave the model whole,": args.device.type == "cpu",
    }
    if names := [name for name, asked in refused.items() if asked]:
        raise InputError(
            f"{names[0]} does not work with FSDP, which cuts the weights in pieces; leave it out, or use another "
            "configuration of recipes/accelerate"
        )


def check_weights(model: MultitaskBertModel, plan: Sequence[str]) -> None:
    """Refuse weights that training would round away, cannot move or could not give back, and point out heads that stay
    as they are.

    Args:
        model: to be trained; also one that peft made.
        plan: the task of each step.

    Raises:
        InputError: names the weight or the task, and what to do.
    """
    weights = dict(model.named_parameters())
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    for name, weight in trained.items():
        if weight.dtype in (torch.float16, torch.bfloat16):
            raise InputError(
                f"the model's weights are {weight.dtype} ({name} first), which rounds most updates away; load it "
                "without dtype=, or call model.float(); half precision in training is --bf16 or --fp16"
            )
        if name.count(".modules_to_save.") > 1:
            raise InputError(
                f"peft wraps {name} twice, and could not load it again: its task_type adds every layer called "
                "classifier to modules_to_save; leave task_type out of the LoraConfig"
            )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InputError(
            "model.add_adapter leaves checkpoints without the tasks; use peft.get_peft_model(model, config) instead"
        )
    for task in dict.fromkeys(plan):
        head = any(f"heads.{task}." in name for name in trained)
        encoder = "bert." if model.config.encoder_sharing == "shared" else f"encoders.{task}."
        if not head and not any(encoder in name for name in trained):
            raise InputError(f"task {task!r} has nothing to train: none of its weights has requires_grad")
        if not head:
            logger.warning(
                f"the head of task {task!r} is not trained: none of its weights has requires_grad (with peft, name it: "
                f'modules_to_save=["heads.{task}"])'
            )
