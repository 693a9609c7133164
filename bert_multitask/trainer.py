"""The one place where tasks, model, schedule and loss meet: a thin subclass of `transformers.Trainer`."""

import copy
import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from .arguments import MultitaskTrainingArguments
from .collate import Collator, TaskRows
from .configuration import InputError
from .heads import MultitaskBertModel
from .metrics import METRICS, overall_score, task_scores
from .schedule import SCHEDULES, PlanSampler, count_batches, describe
from .tasks import Task

logger = logging.get_logger(__name__)


class MultitaskTrainer(Trainer):
    """Trains a `MultitaskBertModel` on a plan of its tasks' batches, one task a step.

    Args:
        model: whose tasks say the epochs of each.
        args: the schedule, its budget, and everything `TrainingArguments` has.
        train_dataset: {task: tokenised rows} of every task of the model.
        eval_dataset: the same of the dev rows; needed for evaluation.
        processing_class: the tokenizer; it is saved with every checkpoint.
        kwargs: other arguments of `transformers.Trainer`.
    """

    def __init__(
        self,
        model: MultitaskBertModel,
        args: MultitaskTrainingArguments,
        train_dataset: Mapping[str, Dataset],
        eval_dataset: Mapping[str, Dataset] | None = None,
        processing_class=None,
        **kwargs,
    ):
        if not isinstance(args, MultitaskTrainingArguments):
            raise InputError(f"args is a {type(args).__name__}; expected MultitaskTrainingArguments")
        if missing := [name for name in model.tasks if name not in train_dataset]:
            raise InputError(f"train_dataset has no rows of task {missing[0]!r}, which the model has")
        self.rows = {name: len(train_dataset[name]) for name in model.tasks}
        self.epochs = {name: task.epochs for name, task in model.tasks.items()}
        self.batch_size = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
        self.data_seed = args.data_seed if args.data_seed is not None else args.seed
        batches = count_batches(self.rows, self.epochs, self.batch_size, args.budget)
        plan = SCHEDULES[args.schedule](batches, self.data_seed)
        self.plan = plan[: args.max_steps] if args.max_steps > 0 else plan
        args = copy.copy(args)  # the caller's stay as they are
        # Trainer repeats a data loader that is shorter than max_steps; the plan is all there is.
        args.max_steps = len(self.plan)
        check_metrics(model.tasks, args)
        self.step_losses: dict[str, list] = {}
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(model.config.pad_token_id or 0),
            train_dataset=TaskRows(train_dataset),
            eval_dataset=dict(eval_dataset or {}),
            processing_class=processing_class,
            **kwargs,
        )
        self.add_callback(TimeEstimate())
        if args.schedule == "sequential":
            self.add_callback(EpochEnds(self.plan, self.rows, self.batch_size))

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

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Overridden to keep each task's training loss for the log. Scaling is Trainer's: the model divides by the
        labelled rows of the whole step, all processes and accumulation steps together."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            total, count = self.step_losses.get(inputs["task"], (0.0, 0))
            self.step_losses[inputs["task"]] = [total + loss.detach(), count + 1]
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Overridden to add `loss_{task}`, the mean over that task's steps since the last entry, to training logs."""
        if "loss" in logs:
            for task, (total, count) in sorted(self.step_losses.items()):
                steps = count / self.args.gradient_accumulation_steps
                logs[f"loss_{task}"] = self.accelerator.gather(total).mean().item() / steps
            self.step_losses.clear()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
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
        outputs = {}
        for name, rows in loaders.items():
            loader = self.get_eval_dataloader(rows)
            outputs[name] = self.evaluation_loop(loader, f"Evaluation of {name}", False, ignore_keys)
            self.callback_handler.on_predict(self.args, self.state, self.control, {})  # ends this task's progress bar
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


class EpochEnds(TrainerCallback):
    """Evaluates and saves where a task of a sequential plan ends an epoch."""

    def __init__(self, plan: list[str], rows: Mapping[str, int], batch_size: int):
        self.steps, seen = set(), dict.fromkeys(rows, 0)
        for step, task in enumerate(plan, start=1):
            seen[task] += 1
            if seen[task] % -(-rows[task] // batch_size) == 0:
                self.steps.add(step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = args.save_strategy != "no"
        return control


class TimeEstimate(TrainerCallback):
    """Says after the first steps how long the rest will take, evaluation not counted."""

    first, last = 3, 13  # the first steps warm up

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if len(self.seconds) == self.last:
            return
        self.seconds.append(time.perf_counter() - self.start)
        if len(self.seconds) == self.last and state.is_world_process_zero:
            step = mean(self.seconds[self.first :])
            left = step * (state.max_steps - state.global_step)
            amount = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
            logger.warning(f"{step:.2f} s a step: about {amount} for the steps left, evaluation not counted")


class HistoryFile(TrainerCallback):
    """Writes every log entry to a JSON-lines file as it comes; a resumed run rewrites what its checkpoint remembers.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.path.write_text("".join(json.dumps(entry) + "\n" for entry in state.log_history), encoding="utf-8")

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")
