"""Hyperparameter search by optuna (paper, section 4.5): trials are plain runs, and the best ends as a YAML file."""

import csv
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, release_memory
from datasets import DatasetDict
from transformers import TrainerCallback, set_seed
from transformers.integrations import is_optuna_available
from transformers.utils import logging

from ..data.rows import describe_rows
from ..evaluation.metrics import higher_is_better
from ..model.errors import InputError, NonFiniteError, install
from ..model.tasks import Task
from .arguments import MultitaskTrainingArguments, RunArguments, check_launch, to_field
from .callbacks import HistoryFile
from .checkpoints import remove_checkpoints
from .folder_lock import contents, remove
from .jobs import Job, run_jobs
from .run import load_model, prepare, trainer_data
from .run_folder import compare_settings, deciding_settings, fingerprints
from .search_space import (
    TuneArguments,
    configure,
    describe_first,
    include_given,
    present_settings,
    read_space,
    to_flags,
)
from .trainer import MultitaskTrainer

logger = logging.get_logger(__name__)

if is_optuna_available():
    import optuna
    from optuna.trial import TrialState

STUDY, TRIAL = "search", "trial-"  # the study's name, and what the names of the trials' jobs begin with
# What decides a trial's score, besides what decides its weights.
SCORING = "eval_strategy eval_steps eval_delay metric_for_best_model load_best_model_at_end".split()

# What a search leaves in its folder, as patterns; best/ is the run that the user trains by best.yaml.
WRITTEN = ("study.db*", "trials", "trials.csv", "best.yaml", "search.png")


class ReportToTrial(TrainerCallback):
    """Tells a trial the score of each evaluation, and ends its training where the study's pruner gives it up.

    Of several processes the first alone has the trial and asks the pruner; all end together.

    Args:
        trial: optuna's; None on all processes but the first.
        metric: key of the score.
    """

    def __init__(self, trial: "optuna.Trial | None", metric: str):
        self.trial, self.metric = trial, metric
        self.pruned = False

    def on_evaluate(self, args, state, control, metrics: dict, **kwargs):
        if self.trial:
            self.trial.report(metrics[self.metric], state.global_step)
        if state.global_step < state.max_steps:  # after the last step there is nothing to save
            (self.pruned,) = broadcast_object_list([bool(self.trial and self.trial.should_prune())])
            control.should_training_stop |= self.pruned


def check_search(args: MultitaskTrainingArguments, options: TuneArguments) -> None:
    """Raises InputError if optuna is missing, the flags do not fit a search, or its folder holds something else."""
    folder = Path(args.output_dir)
    if not is_optuna_available():
        raise InputError(f"a search needs optuna: {install('tune')}")
    if args.resume_from_checkpoint:
        raise InputError("--resume_from_checkpoint is of a run; a search goes on by the command that began it")
    if options.jobs > 1 < args.world_size:
        raise InputError("--jobs starts a process for each trial; call it without `accelerate launch`")
    if contents(folder) and not (folder / "study.db").exists():
        raise InputError(f"--output_dir {folder} exists and holds no search; choose another folder")


class Search:
    """A search in its folder, `--output_dir`. The study there, `study.db`, is all that it goes on from.

    Args:
        run: the flags that all trials have in common.
        args: the same.
        options: what is searched, and how often.
        given: the flags that the user set, {name: value}, for the best trial's YAML file.
        joins: whether this process runs one trial of a search (see `run_side_by_side`), and keeps no books.

    Raises:
        InputError: something is wrong with the input; nothing is written then.
    """

    def __init__(
        self,
        run: RunArguments,
        args: MultitaskTrainingArguments,
        options: TuneArguments,
        given: dict[str, object],
        joins: bool = False,
    ):
        check_search(args, options)
        logging.set_verbosity(args.get_process_log_level())
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # each trial is told of below
        check_launch()
        self.run, self.options = run, options
        own = {field.name for field in fields(options)} | {"overwrite"}
        self.given = {name: value for name, value in given.items() if name not in own}
        self.given["tasks"] = to_field(run.tasks)  # whole, where a flag named one that the YAML defines
        # Trials push nothing, and their checkpoints are there for their scores alone.
        self.args = replace(args, push_to_hub=False, save_only_model=True)
        self.first = args.process_index == 0
        self.wrote = False  # whether this command has written what is known
        self.folder = Path(args.output_dir)
        self.metric = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
        self.tasks = run.load_tasks()
        tasks = {task.name: task for task in self.tasks}
        self.highest = higher_is_better(tasks, args.metric_for_best_model, args.greater_is_better)
        shipped = read_space(options.search, run, args)
        self.space = include_given(shipped, run, args, given) if options.search is None else shipped
        # The trainer of the flags as they are is not trained: it says the plan, and refuses what trials would refuse.
        tasks, rows, tokens, trainer = prepare(run, self.args)
        self.names = {task.name: task.label_names for task in tasks}  # those that the rows say, too
        self.tasks = self.named(self.tasks)
        self.data = trainer_data(trainer.processing_class, tokens)
        first = describe_first(self.space, shipped, present_settings(self.space, run, args), given)
        self.heading = "\n".join([f"{describe_rows(self.tasks, rows)}\n\n{trainer.describe_plan()}", *first])
        # Early scores say little: a learning rate may still be warming up.
        self.pruner = optuna.pruners.MedianPruner(n_warmup_steps=len(trainer.plan) // 3)
        self.study = self.open_study(rows) if self.first and not joins else None

    def named(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks with the label names that were found when the search began."""
        return [replace(task, label_names=self.names[task.name]) for task in tasks]

    @property
    def storage(self) -> str:
        """The address of the study."""
        return f"sqlite:///{(self.folder / 'study.db').resolve()}"

    def open_study(self, rows: Mapping[str, DatasetDict]) -> "optuna.Study":
        """The study in the folder, or a new one, of these rows. An interrupted trial is run again."""
        if self.run.overwrite:
            remove([path for pattern in WRITTEN for path in self.folder.glob(pattern)])
        file = self.folder / "study.db"
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            study = optuna.create_study(
                study_name=STUDY,
                storage=self.storage,
                direction="maximize" if self.highest else "minimize",
                pruner=self.pruner,
                load_if_exists=True,
            )
        except Exception as error:  # damage shows in several ways
            raise InputError(f"{file}: is not a study ({str(error).splitlines()[0]}); was it cut off?") from error
        settings = deciding_settings(self.run, self.args, self.tasks, fingerprints(rows))
        settings |= {name: getattr(self.args, name) for name in SCORING} | {"search": self.space}
        if "settings" in study.user_attrs:
            compare_settings(study.user_attrs["settings"], settings, self.folder)
        study.set_user_attr("settings", json.loads(json.dumps(settings, default=str)))
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        for trial in self.folder.glob("trials/*"):
            remove_checkpoints(trial)
        return study

    def run_trials(self) -> None:
        """Run the trials that are missing, and after each of them write what is known by then."""
        if self.first:
            print(self.heading, flush=True)
        while self.run_trial():
            if self.first:
                self.write()
        if self.first and not self.wrote:
            self.write()

    def run_side_by_side(self, argv: Sequence[str]) -> None:
        """`run_trials` with as many at a time as --jobs says, each in a process of its own.

        Args:
            argv: of this command, which is called again for each trial.
        """
        print(self.heading, flush=True)

        def jobs() -> Iterator[Job]:
            """The next trial, when there is room for it."""
            while trial := self.ask():
                self.suggest(trial)
                folder = self.folder / "trials" / str(trial.number)
                folder.mkdir(parents=True, exist_ok=True)
                command = ["-m", "bert_multitask", "tune", *argv]
                yield Job(f"{TRIAL}{trial.number}", command, folder / "output.log")

        run_jobs(jobs(), self.options.jobs, lambda job: self.write(int(job.name.removeprefix(TRIAL))))
        if not self.wrote:
            self.write()

    def run_one(self, number: int) -> None:
        """Run a trial that another process has asked for (see `run_side_by_side`)."""
        storage = optuna.storages.RDBStorage(self.storage)
        self.study = optuna.load_study(study_name=STUDY, storage=storage, pruner=self.pruner)
        study = storage.get_study_id_from_name(STUDY)
        trial = optuna.trial.Trial(self.study, storage.get_trial_id_from_study_id_trial_number(study, number))
        self.train_trial(trial, number, trial.params)

    def run_trial(self) -> bool:
        """Run one more trial, on all processes; False where there are enough."""
        trial = self.ask() if self.first else None
        asked = (trial.number, self.suggest(trial)) if trial else None
        (asked,) = broadcast_object_list([asked])
        if asked is None:
            return False
        self.train_trial(trial, *asked)
        return True

    def train_trial(self, trial: "optuna.Trial | None", number: int, settings: dict[str, object]) -> None:
        """Train a trial, a plain run, and tell the study its score: what a run ends with, the best checkpoint's.

        Args:
            trial: optuna's; None on all processes but the first.
            number: of the trial.
            settings: {flag or flag.task: value}.
        """
        release_memory()  # of the trainer before: it is part of circles of references
        trainer, report, metrics = self.make_trial(number, settings), ReportToTrial(trial, self.metric), {}
        trainer.add_callback(report)
        try:
            trainer.train()
            trainer.remove_callback(report)
            metrics = {} if report.pruned else trainer.evaluate()
        except NonFiniteError as error:
            logger.warning(f"trial {number} diverged: {error}")
        PartialState().wait_for_everyone()  # before checkpoints go that another process may still be reading
        if self.first:
            remove_checkpoints(Path(trainer.args.output_dir))
            self.tell(trial, report.pruned, metrics)

    def ask(self) -> "optuna.Trial | None":
        """The next trial; None where there are enough. The first has the flags as they are."""
        begun = len(self.finished()) + len(self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        if begun >= self.options.n_trials:
            return None
        # A seed for each, so that a search that was stopped goes on as it would have.
        seed = np.random.SeedSequence([self.args.seed, begun]).generate_state(1)
        self.study.sampler = optuna.samplers.TPESampler(seed=int(seed[0]))
        if not begun and not self.study.get_trials(states=(TrialState.WAITING,)):
            self.study.enqueue_trial(present_settings(self.space, self.run, self.args))
        return self.study.ask()

    def suggest(self, trial: "optuna.Trial") -> dict[str, object]:
        """The settings of a trial, {flag or flag.task: value}."""
        return {
            name: trial.suggest_categorical(name, values)
            if isinstance(values, list)
            else trial.suggest_float(name, **values)
            for name, values in self.space.items()
        }

    def make_trial(self, number: int, settings: dict[str, object]) -> MultitaskTrainer:
        """The trainer of a trial: what `training.train` makes of its flags, on the rows that are tokenised already."""
        run, args = configure(self.run, self.args, settings)
        args.output_dir = str(self.folder / "trials" / str(number))
        set_seed(args.seed)
        model = load_model(run, self.named(run.load_tasks()))
        history = HistoryFile(Path(args.output_dir, "history.jsonl"))
        return MultitaskTrainer(model, args, **self.data, callbacks=[history])

    def tell(self, trial: "optuna.Trial", pruned: bool, metrics: dict[str, float]) -> None:
        """Tell the study how a trial ended.

        Args:
            pruned: whether the pruner ended it; its score is the last that was reported.
            metrics: at its end; empty if it was pruned or diverged. No score, or one that is NaN, counts as the worst
                possible.
        """
        if metrics:
            trial.set_user_attr("metrics", metrics)
        if pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        score = metrics[self.metric] if metrics else math.nan
        worst = -math.inf if self.highest else math.inf
        self.study.tell(trial, worst if math.isnan(score) else score)

    def finished(self) -> list["optuna.trial.FrozenTrial"]:
        """The trials that count: those that ended, or that the pruner ended; not those that were stopped."""
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))

    def table(self) -> list[dict[str, object]]:
        """A row for each trial that counts: its number, state, score (of a pruned one the last), step, settings, scores
        and seconds."""
        keys = [f"eval_{task.name}_{task.metric}" for task in self.tasks] + ["eval_overall"]
        return [
            {
                "trial": trial.number,
                "state": trial.state.name.lower(),
                "score": math.nan if trial.value is None else trial.value,
                "step": trial.last_step,
            }
            | {name: trial.params[name] for name in self.space}
            | {key: trial.user_attrs.get("metrics", {}).get(key) for key in keys}
            | {"seconds": round(trial.duration.total_seconds(), 1)}
            for trial in self.finished()
        ]

    def write(self, number: int | None = None) -> None:
        """Write `trials.csv` and `best.yaml`, and print a trial, by default the last."""
        self.wrote = True
        table = self.table()
        row = next((row for row in table if row["trial"] == number), table[-1])
        with (self.folder / "trials.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)
        best = self.study.best_trial
        settings = {name: best.params[name] for name in self.space}
        flags = self.given | to_flags(self.run, settings) | {"output_dir": str(self.folder / "best")}
        text = yaml.safe_dump(flags, sort_keys=False, allow_unicode=True)
        heading = f"# The best of {len(table)} trials, number {best.number}: {self.metric} {best.value:.4f}\n"
        (self.folder / "best.yaml").write_text(heading + text, encoding="utf-8")
        print(
            f"trial {row['trial']} {row['state']}: {self.metric} {row['score']:.4f}; best of "
            f"{len(table)}: {best.value:.4f}, trial {best.number}, {self.folder / 'best.yaml'}",
            flush=True,
        )

    def overview(self) -> dict:
        """What `reporting.plots.search_overview` draws, by the names of its arguments."""
        return {
            "trials": self.table(),
            "space": self.space,
            "importances": find_importances(self.study, self.space),
            "metric": self.metric,
            "highest": self.highest,
        }


def find_importances(study: "optuna.Study", settings: Collection[str]) -> dict[str, float]:
    """{setting: its share of the variance of the whole trials' scores that each explains by itself} (fANOVA).

    Empty of equal scores, and where there are no more trials than settings: the shares would be the estimator's chance.
    """
    scores = [trial.value for trial in study.get_trials(states=(TrialState.COMPLETE,)) if math.isfinite(trial.value)]
    if len(scores) <= len(settings) or len(set(scores)) == 1:
        return {}
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(settings))
