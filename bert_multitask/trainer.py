"""The one place where tasks, model, schedule and loss meet: a thin subclass of `transformers.Trainer`."""

import copy
import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import PredictionOutput
from transformers.utils import logging

from .arguments import MultitaskTrainingArguments
from .callbacks import BestOfEachTask, EpochEnds, TimeEstimate
from .collate import Collator, TaskRows
from .configuration import InputError
from .heads import MultitaskBertModel
from .hub import HubTrainer
from .losses import DIVERGENCES, UNLABELLED
from .metrics import METRICS, decide, overall_score, task_scores
from .optim import PaperAdamW
from .randomness import keeps_generators
from .schedule import SCHEDULES, PlanSampler, count_batches, describe
from .smart import DropoutMasks, MomentumTeacher, smart_penalty
from .statistics import VECTORISED
from .tasks import Task

logger = logging.get_logger(__name__)


class MultitaskTrainer(HubTrainer):
    """Trains a `MultitaskBertModel` on a plan of its tasks' batches, one task a step.

    Args:
        model: whose tasks say the epochs of each.
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
        check_smart(model.tasks, args)
        check_sharding(model, args)
        for name in self.rows.keys() - set(self.plan):
            logger.warning(f"{name} gets no batch of this plan; its score is an untrained head's")
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

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Overridden to add SMART's terms to a training step's loss, and to keep each task's losses and predictions for
        the log.

        Scaling is as Trainer's: the model divides by the labelled rows of the whole step, all processes and
        accumulation steps together.
        """
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        task = self.model.tasks[inputs["task"]]
        masks = DropoutMasks(inputs["labels"]) if task.smart_weight and self.args.smart_share_dropout else None
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.keep(f"loss_{task.name}", loss)
        if self.args.logging_strategy != "no":
            # Both as floats: processes gather them, and the label of a FILLER is an integer among scores, too.
            self.seen.setdefault(task.name, []).append((outputs["logits"].detach().float(), inputs["labels"].float()))
        rows = (inputs["labels"] != UNLABELLED).sum()
        share = rows if num_items_in_batch is None else rows / num_items_in_batch
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
                task, labelled = self.model.tasks[name], labels != UNLABELLED
                predicted = decide(task, logits)
                logs[f"{task.metric}_{name}"] = float(VECTORISED[task.metric](predicted[labelled], labels[labelled]))
            self.sums.clear()
            self.seen.clear()
        super().log(logs, start_time)

    def gather_rows(self, values: Tensor) -> np.ndarray:
        """The rows of all processes, which may have different numbers of them: filled up with unlabelled ones."""
        padded = self.accelerator.pad_across_processes(values, pad_index=UNLABELLED)
        return self.accelerator.gather(padded).cpu().numpy()

    @keeps_generators
    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Overridden to leave the random generators alone."""
        return super().predict(*args, **kwargs)

    @keeps_generators
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
    for name, task in tasks.items():
        if task.metric not in METRICS:
            raise InputError(f"task {name!r}: metric is {task.metric!r}; choose one of {', '.join(METRICS)}")
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
