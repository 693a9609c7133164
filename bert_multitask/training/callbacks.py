"""The trainer's callbacks: evaluation at epoch ends, each task's best weights, an early stop at a bad number, an
estimate of the time left, the history file."""

import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean

from accelerate import PartialState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback

from ..data.records import to_json, write_text, writing
from ..evaluation.metrics import signed
from ..model.errors import explained
from ..model.modeling import MultitaskBertModel
from .checkpoints import list_checkpoints
from .terminal import say


class EpochEnds(TrainerCallback):
    """Evaluates and saves at each step where a task ends an epoch; for sequential plans."""

    def __init__(self, plan: list[str], rows: Mapping[str, int], batch_size: int):
        self.steps, seen = set(), dict.fromkeys(rows, 0)
        for step, task in enumerate(plan, start=1):
            seen[task] += 1
            if seen[task] % -(-rows[task] // batch_size) == 0:
                self.steps.add(step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            control.should_evaluate = args.eval_strategy != "no" and args.eval_delay <= state.global_step
            control.should_save = args.save_strategy != "no"
        return control


class BestOfEachTask(TrainerCallback):
    """Saves each task's weights whenever an evaluation gives its best score, and ends training with these weights.

    It is for models with an encoder (paper, section 4.2.1) or an adapter for each task. Their tasks share no trained
    weight (`are_apart`), so the best weights of all tasks make one model. Each better score writes a file
    `_best/{task}-{step}.safetensors` in the output folder. Files that no checkpoint can need any more are removed.
    """

    def __init__(self):
        self.best: dict[str, float] = {}  # {task: best score, `signed`}; empty outside of training
        self.kept: dict[str, int] = {}  # {task: the step whose weights it ended training with}

    def on_train_begin(self, args, state, control, model: MultitaskBertModel, **kwargs):
        for name, task in model.tasks.items():
            self.best[name] = float("-inf")
            for step, file in self.files(args, name).items():
                if state.global_step and step <= state.global_step:
                    self.best[name] = signed(task, read_score(file))
                elif state.is_world_process_zero:
                    file.unlink()  # from steps after the checkpoint that this run continues from

    def on_evaluate(self, args, state, control, metrics: dict, model: MultitaskBertModel, **kwargs):
        for name, task in model.tasks.items():
            key = f"eval_{name}_{task.metric}"
            if key not in metrics or not signed(task, metrics[key]) > self.best.get(name, float("inf")):
                continue
            self.best[name] = signed(task, metrics[key])
            if state.is_world_process_zero:
                file = Path(args.output_dir, "_best", f"{name}-{state.global_step}.safetensors")
                file.parent.mkdir(exist_ok=True)
                with writing(file) as draft:
                    save_file(task_weights(model, name), draft, {"score": repr(metrics[key])})

    def on_save(self, args, state, control, model: MultitaskBertModel, **kwargs):
        if not state.is_world_process_zero:
            return
        checkpoints = list_checkpoints(Path(args.output_dir))
        for task in model.tasks:
            files = self.files(args, task)
            needed = {max((step for step in files if step <= checkpoint), default=None) for checkpoint in checkpoints}
            for step in files.keys() - needed:
                files[step].unlink()

    def on_train_end(self, args, state, control, model: MultitaskBertModel, **kwargs):
        PartialState().wait_for_everyone()  # process 0 may still be writing
        for name in model.tasks:
            if files := self.files(args, name):
                step, file = max(files.items())
                with safe_open(file, "pt") as weights:
                    for key, weight in task_weights(model, name).items():
                        weight.copy_(weights.get_tensor(key))
                self.kept[name] = step
        self.best = {}

    def files(self, args, task: str) -> dict[int, Path]:
        """{step: file} of a task's saved weights, in the order of steps, so the last has the best score."""
        name = re.compile(rf"{re.escape(task)}-([0-9]+)\.safetensors")
        files = Path(args.output_dir, "_best").glob("*.safetensors")
        return dict(sorted((int(match[1]), file) for file in files if (match := name.fullmatch(file.name))))


def read_score(file: Path) -> float:
    """The dev score recorded in a file of a task's best weights.

    Raises:
        InputError: the file is damaged.
    """
    what, hint = f"{file}: the best weights of a task are damaged", "start the run again with --overwrite"
    with explained(what, SafetensorError, OSError, TypeError, KeyError, ValueError, hint=hint):
        with safe_open(file, "pt") as weights:
            return float(weights.metadata()["score"])


def task_weights(model: MultitaskBertModel, task: str) -> dict:
    """{name: weight} of the weights that only this task uses: those of its encoder or adapter, and of its head.

    The tensors share the model's memory. In a model that peft made, the names have a prefix.
    """
    own = re.compile(rf"((base_model\.model\.)?(encoders|heads)|.*\.lora_\w+)\.{re.escape(task)}(\..*)?")
    return {key: value for key, value in model.state_dict().items() if own.fullmatch(key)}


def are_apart(model: MultitaskBertModel) -> bool:
    """Whether the tasks share no trained weight."""
    if model.config.encoder_sharing == "shared":
        return False
    own = {key for task in model.tasks for key in task_weights(model, task)}
    return own.issuperset(name for name, weight in model.named_parameters() if weight.requires_grad)


class StopAtBadStep(TrainerCallback):
    """Looks for numbers that are not finite after the last step and after each one that is logged, evaluated or saved.

    Args:
        check: raises an error if there was such a number. Its argument says whether the weights are about to be saved.
    """

    def __init__(self, check: Callable[[bool], None]):
        self.check = check

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self.check(control.should_save)


class TimeEstimate(TrainerCallback):
    """Prints after the first steps how long the rest will take, without evaluation, if there is no progress bar."""

    first, last = 3, 13  # steps that are timed; those before are slower

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if len(self.seconds) == self.last:
            return
        self.seconds.append(time.perf_counter() - self.start)
        has_bar = sys.stderr.isatty() and not args.disable_tqdm
        if len(self.seconds) == self.last and state.is_world_process_zero and not has_bar:
            step = mean(self.seconds[self.first :])
            left = step * (state.max_steps - state.global_step)
            amount = f"{left:.0f} s" if left < 120 else f"{left / 60:.0f} min"
            say(f"({step:.2g} s a step: about {amount} for the steps left, evaluation not counted)")


class HistoryFile(TrainerCallback):
    """Appends every log entry to a JSON-lines file. A resumed run first rewrites the entries up to its checkpoint."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_text(self.path, "".join(to_json(entry) + "\n" for entry in state.log_history))

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(to_json(state.log_history[-1]) + "\n")
