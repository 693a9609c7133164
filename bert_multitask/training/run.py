"""A training run from its arguments to its folder: what the training commands do with their flags."""

import errno
import io
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import datasets
from accelerate.utils.memory import should_reduce_batch_size
from datasets import Dataset, DatasetDict
from huggingface_hub.utils import enable_progress_bars
from torch.distributed import is_initialized
from transformers import PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import PredictionOutput
from transformers.utils import logging

from ..data.rows import (
    describe_label_names,
    describe_rows,
    is_from_hub,
    load_rows,
    sample_rows,
    warn_of_other_draws,
    with_label_names,
)
from ..data.token_rows import count_labelled
from ..data.tokens import load_tokenizer, tokenise_splits
from ..evaluation.intervals import Estimate, Scores
from ..evaluation.metrics import decide
from ..evaluation.tables import prediction_table, with_texts, write_predictions
from ..model.configuration import MultitaskBertConfig
from ..model.errors import InputError, one_line
from ..model.losses import labelled_rows
from ..model.modeling import MultitaskBertModel, describe_loading
from ..model.tasks import Task
from .arguments import MultitaskTrainingArguments, RunArguments, check_launch
from .callbacks import HistoryFile
from .distill import add_soft_labels
from .optim import freeze_layers
from .run_folder import RunFolder
from .stopping import STOP, StopAtStepEnd, resume_command
from .terminal import describe_end, describe_scores, say, warnings_as_lines
from .trainer import MultitaskTrainer, split_outputs

logger = logging.get_logger(__name__)
LONGEST = 2000  # characters of a message that are printed


class Prepared(NamedTuple):
    """What a run trains: {task: its clean rows by split}, {task: the tokens that are used}, and the trainer."""

    tasks: list[Task]
    rows: dict[str, DatasetDict]
    tokens: dict[str, dict[str, Dataset]]
    trainer: MultitaskTrainer


def train(run: RunArguments, args: MultitaskTrainingArguments) -> dict[str, float]:
    """Train, and leave the run folder `args.output_dir` (docs/architecture.md).

    Args:
        run: which checkpoint, tasks and rows.
        args: how to train.

    Returns:
        The dev scores, as in `metrics.json`.

    Raises:
        InputError: something is wrong with the input; nothing is computed then.
    """
    logging.set_verbosity(args.get_process_log_level())  # Trainer does so too, after the model is loaded
    check_launch()
    quieten_bars(args.process_index == 0)
    with RunFolder(args, overwrite=run.overwrite) as folder, explained_failures(args):
        callbacks = [HistoryFile(folder.path / "history.jsonl"), StopAtStepEnd(STOP)]
        prepared = prepare(run, args, callbacks)
        tasks, rows, _, trainer = prepared
        folder.begin(run, tasks, rows, trainer)
        if args.process_index == 0:
            say(f"\n{describe_rows(tasks, rows)}\n\n{trainer.describe_plan()}")
        advice = f"go on with: {resume_command(run.overwrite)}"
        with STOP.advising(advice), closing(trainer.table):  # so that no message ends a bar
            trainer.train(resume_from_checkpoint=folder.checkpoint)
            metrics, card = write_results(run, args, folder, prepared)
        if args.push_to_hub:
            url = trainer.push_to_hub(**card)
            if args.process_index == 0:
                say(f"pushed: {url}")
    return metrics


def quieten_bars(show_downloads: bool) -> None:
    """Hide progress bars of libraries, each of which would leave a line; in a terminal downloads may show theirs."""
    logging.disable_progress_bar()  # the Hub's, too
    datasets.disable_progress_bars()
    if show_downloads and sys.stderr.isatty():
        enable_progress_bars()


def write_results(
    run: RunArguments, args: MultitaskTrainingArguments, folder: RunFolder, prepared: Prepared
) -> tuple[dict[str, float], dict[str, object]]:
    """Write the trained model, its predictions, its card and its scores; returns the dev scores, and what the card
    says."""
    tasks, rows, tokens, trainer = prepared
    trainer.save_model(_internal_call=True)  # else it would push before there are scores
    if args.do_predict:
        outputs = predict_splits(trainer, rows, tokens, folder.path / "predictions")
        metrics, scores = trainer.score(outputs), estimate_scores(trainer.model.tasks, outputs)
    else:
        metrics, scores = trainer.evaluate(), None
        metrics = {key: metrics[key] for key in metrics if key not in ("eval_runtime", "epoch")}
    card = {"scores": scores, "base_model": run.model_name_or_path, "data": folder.data}
    card["dataset"] = [task.hub.path for task in tasks if task.hub and is_from_hub(task, run.data_dir)]
    trainer.create_model_card(**card)
    folder.finish(metrics)
    if args.process_index == 0:
        counts = {name: count_labelled(splits["dev"]) for name, splits in tokens.items()}
        say(f"\n{describe_scores(trainer.model.tasks, metrics, counts, scores)}\n")
        say(describe_end(folder.path, trainer.describe_kept(), args.do_predict))
    return metrics, card


# Errors of a disk that is full, or that may not be written; and their words where a library hides the number.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG}
DISK_WORDS = re.compile("unexpected pos|PytorchStreamWriter failed|os error (5|13|27|28|30|122)")


@contextmanager
def explained_failures(args: MultitaskTrainingArguments):
    """Turn a full disk and memory that runs out into an `InputError` that says what to do."""
    try:
        yield
    except InputError:  # which says what to do
        raise
    except Exception as error:
        reason = one_line(error)[:200]
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            rows, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
            raise InputError(
                f"out of memory with --per_device_train_batch_size {rows} and --gradient_accumulation_steps {steps} "
                f"({reason}); halve the one and double the other, which leaves a step's rows as they are; where an "
                f"evaluation failed, lower --per_device_eval_batch_size {args.per_device_eval_batch_size}"
            ) from error
        if (isinstance(error, OSError) and error.errno in DISK_ERRORS) or DISK_WORDS.search(reason):
            folder = Path(args.output_dir)
            free = f"; {shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free in {folder}" * folder.exists()
            raise InputError(
                f"a file cannot be read or written: {reason}{free}; earlier checkpoints are untouched: mend it "
                "and go on with --resume_from_checkpoint"
            ) from error
        raise


def prepare(
    run: RunArguments,
    args: MultitaskTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
    plan: Sequence[str] | None = None,
) -> Prepared:
    """Check all input and build the trainer; nothing is computed and nothing written but the cache of tokens. `plan`
    replaces the schedule's.

    Raises:
        InputError: something is wrong with the input.
    """
    set_seed(args.seed)
    given = run.load_tasks()
    tasks = [with_label_names(task, run.data_dir) for task in given]
    rows = {task.name: load_rows(task, run.data_dir) for task in tasks}
    for task in [task for task in tasks if task.distill_from]:
        rows[task.name]["train"] = add_soft_labels(task, rows[task.name]["train"])
    if run.encoder_sharing != "per_task":
        warn_of_other_draws(tasks, rows, run.data_dir)
    tell = say if args.process_index == 0 else logger.info
    for task, before in zip(tasks, given, strict=True):
        if before.is_open:
            tell(describe_label_names(task))
    model = load_model(run, tasks, tell)
    tokenizer, tokens = tokenise_rows(run, args, tasks, rows, model.config)
    trainer = MultitaskTrainer(model, args, **trainer_data(tokenizer, tokens), callbacks=list(callbacks), plan=plan)
    # The trainer has counted the labels of "balanced" class weights, which are recorded with the run.
    tasks = [replace(task, class_weights=trainer.model.tasks[task.name].class_weights) for task in tasks]
    return Prepared(tasks, rows, tokens, trainer)


def load_model(run: RunArguments, tasks: list[Task], tell: Callable[[str], object] = logger.info) -> MultitaskBertModel:
    """The checkpoint in the run's layout, with new heads for the tasks; `tell` is called with a line on these."""
    fields = {name: getattr(run, name) for name in ("encoder_sharing", "pair_encoding", "pooling")}
    if run.encoder_dropout is not None:
        config = MultitaskBertConfig.from_pretrained(run.model_name_or_path)
        fields |= dict.fromkeys(config.dropout_fields, run.encoder_dropout)
    try:
        model, info = MultitaskBertModel.from_pretrained(
            run.model_name_or_path, tasks=tasks, output_loading_info=True, peft_config=run.peft_config, **fields
        )
    except InputError as error:
        raise InputError(
            f"{error}; see --model_name_or_path, or try `make quickstart`, which needs no download"
        ) from error
    if loaded := describe_loading(model.tasks, info):
        tell(loaded)
    if run.lora_train_encoder:
        model.requires_grad_(True)
    if run.freeze_encoder:
        model.requires_grad_(False)
        model.heads.requires_grad_(True)
    if run.freeze_layers is not None:
        freeze_layers(model, run.freeze_layers)
    return model


def tokenise_rows(
    run: RunArguments,
    args: MultitaskTrainingArguments,
    tasks: Sequence[Task],
    rows: Mapping[str, DatasetDict],
    config: MultitaskBertConfig,
) -> tuple[PreTrainedTokenizerBase, dict[str, dict[str, Dataset]]]:
    """The tokenizer of the run's checkpoint, and {task: its tokenised rows by split}, of training those it samples."""
    tokenizer = load_tokenizer(run.model_name_or_path, config.vocab_size)
    max_length = min(run.max_length, config.max_position_embeddings)
    tokenizer.model_max_length = max_length  # saved with it, so that a checkpoint on the Hub is read as it was trained
    with args.main_process_first(desc="tokenising"):
        tokens = {
            task.name: tokenise_splits(task, rows[task.name], tokenizer, max_length, run.pair_encoding)
            for task in tasks
        }
    for task in tasks:
        tokens[task.name]["train"] = sample_rows(task, tokens[task.name]["train"], args.seed)
    return tokenizer, tokens


def trainer_data(tokenizer: PreTrainedTokenizerBase, tokens: Mapping[str, Mapping[str, Dataset]]) -> dict[str, object]:
    """The data of a run, by the names of `MultitaskTrainer`'s arguments."""
    return {
        "processing_class": tokenizer,
        "train_dataset": {name: splits["train"] for name, splits in tokens.items()},
        "eval_dataset": {name: splits["dev"] for name, splits in tokens.items()},
    }


def predict_splits(
    trainer: MultitaskTrainer, clean: Mapping[str, DatasetDict], tokens: dict, folder: Path
) -> dict[str, PredictionOutput]:
    """Write the predictions of every dev and test row; return those of the dev rows."""
    dev, step = {}, trainer.args.eval_batch_size * trainer.args.world_size
    parts = []  # a split of a task, or of the tasks of a group: {task: rows}
    for names in trainer.model.units.values():
        for split in [split for split in tokens[names[0]] if split != "train"]:
            parts.append((split, {name: tokens[name][split] for name in names}))
    batches = (-(-len(next(iter(rows.values()))) // step) for _, rows in parts)
    trainer.table.expect(trainer.args, sum(batches), "predicting")
    for split, rows in parts:
        unit = trainer.model.tasks[next(iter(rows))].unit
        outputs = split_outputs({unit: trainer.predict(rows)})
        dev |= outputs if split == "dev" else {}
        for name, output in outputs.items() if trainer.is_world_process_zero() else ():
            task = trainer.model.tasks[name]
            table = prediction_table(task, rows[name]["id"], output.predictions, rows[name])
            write_predictions(task, with_texts(task, table, clean[name][split]), folder / f"{name}-{split}")
    return dev


def estimate_scores(tasks: dict[str, Task], outputs: dict[str, PredictionOutput]) -> dict[str, Estimate]:
    """{task: its score and the bounds of its 95 % interval}, and the overall score's, of predictions with labels."""
    predicted, labels = {}, {}
    for name, output in outputs.items():
        known = labelled_rows(output.label_ids)
        predicted[name] = decide(tasks[name], output.predictions)[known]
        labels[name] = output.label_ids[known]
    scores = Scores(tasks, predicted, labels)
    return {name: scores[name] for name in (*tasks, "overall")}


def run_recipe(
    main: Callable[[list[str]], object], stopped: str | None = None, argv: Sequence[str] | None = None
) -> None:
    """Run the `main` of a recipe or a command; what is wrong with the input is one line, and exit code 2.

    SIGTERM and Ctrl-C end it with a line, and exit code 143 or 130; so does the end of its launcher. `stopped` says how
    the work goes on after that; by default as `train` says, if it was called.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a console may lack a character of a task's name
    if not sys.stderr.isatty():
        quieten_bars(show_downloads=False)
    with STOP, STOP.advising(stopped), warnings_as_lines():
        try:
            main(list(sys.argv[1:] if argv is None else argv))
        except InputError as error:
            if os.environ.get("LOCAL_RANK", "0") == "0":  # once on each machine
                # Libraries' own messages have several lines, and some quote a whole damaged file.
                message = one_line(error)
                print("error:", message[:LONGEST] + " …" * (len(message) > LONGEST), file=sys.stderr, flush=True)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            signum = getattr(stop, "signum", signal.SIGINT)
            STOP.say(signum)
            if is_initialized():  # the group's end could wait for a process that is gone
                os._exit(128 + signum)
            sys.exit(128 + signum)
