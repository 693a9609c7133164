"""What happens around training: evaluation at epoch ends, the best weights of each task, an estimate of the time left,
and the history file."""

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
from ..model.errors import InputError
from ..model.modeling import MultitaskBertModel
from .checkpoints import list_checkpoints
from .terminal import say


class EpochEnds(TrainerCallback):
    """Evaluates and saves where a task ends an epoch, which it does between others in a sequential plan only."""

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
    """Keeps the weights of each task from the evaluation that scored it best, and ends training with those.

    For a model with an encoder for each task (paper, section 4.2.1), or an adapter, whose tasks have no trained weights
    in common (`are_apart`), so that the best of each make one model. The weights lie in
    `_best/{task}-{step}.safetensors` in the output folder, a file for each better score; those that no checkpoint could
    need are removed.
    """

    def __init__(self):
        self.best: dict[str, float] = {}  # of the tasks in training, `signed`
        self.kept: dict[str, int] = {}  # {task: the step that training ended with}

    def on_train_begin(self, args, state, control, model: MultitaskBertModel, **kwargs):
        for name, task in model.tasks.items():
            self.best[name] = float("-inf")
            for step, file in self.files(args, name).items():
                if state.global_step and step <= state.global_step:
                    self.best[name] = signed(task, read_score(file))
                elif state.is_world_process_zero:
                    file.unlink()  # a stopped run had got beyond the checkpoint that this one goes on from

    def on_evaluate(self, args, state, control, metrics: dict, model: MultitaskBertModel, **kwargs):
        for name, task in model.tasks.items():
            key = f"eval_{name}_{task.metric}"
            if key not in metrics or name not in self.best:
                continue
            score = metrics[key]
            if not signed(task, score) > self.best[name]:
                continue
            self.best[name] = signed(task, score)
            if state.is_world_process_zero:
                file = Path(args.output_dir, "_best", f"{name}-{state.global_step}.safetensors")
                file.parent.mkdir(exist_ok=True)
                with writing(file) as draft:
                    save_file(task_weights(model, name), draft, {"score": repr(score)})

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
        """{step: file} of a task's weights, in the order of steps, so that scores get better."""
        name = re.compile(rf"{re.escape(task)}-([0-9]+)\.safetensors")
        files = Path(args.output_dir, "_best").glob("*.safetensors")
        return dict(sorted((int(match[1]), file) for file in files if (match := name.fullmatch(file.name))))


def read_score(file: Path) -> float:
    """The dev score that a task's best weights had.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with safe_open(file, "pt") as weights:
            return float(weights.metadata()["score"])
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{file}: the best weights of a task are damaged ({error}); start the run anew with --overwrite"
        ) from error


def task_weights(model: MultitaskBertModel, task: str) -> dict:
    """The weights that one task alone uses, by name: its encoder's or adapter's and its head's; they share the model's
    memory. In a model that peft made, their names have a prefix."""
    own = re.compile(rf"((base_model\.model\.)?(encoders|heads)|.*\.lora_\w+)\.{re.escape(task)}(\..*)?")
    return {key: value for key, value in model.state_dict().items() if own.fullmatch(key)}


def are_apart(model: MultitaskBertModel) -> bool:
    """Whether the layout leaves the tasks no trained weight in common."""
    if model.config.encoder_sharing == "shared":
        return False
    own = {key for task in model.tasks for key in task_weights(model, task)}
    return own.issuperset(name for name, weight in model.named_parameters() if weight.requires_grad)


class StopAtBadStep(TrainerCallback):
    """Looks for numbers that are not finite at the end of a step that is logged, evaluated or saved, and of the last:
    `check` raises an error where there is one, and is told whether the weights will be saved."""

    def __init__(self, check: Callable[[bool], None]):
        self.check = check

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_log or control.should_evaluate or control.should_save or control.should_training_stop:
            self.check(control.should_save)


class TimeEstimate(TrainerCallback):
    """Says after the first steps how long the rest will take, evaluation not counted, where no progress bar does."""

    first, last = 3, 13  # the first steps warm up

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
    """Writes every log entry to a JSON-lines file as it comes; a resumed run rewrites what its checkpoint remembers."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            write_text(self.path, "".join(to_json(entry) + "\n" for entry in state.log_history))

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(to_json(state.log_history[-1]) + "\n")
