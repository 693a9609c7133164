"""Several labels of one text: a group, which one pass of the encoder answers, against a task for each label."""

import time
from collections.abc import Sequence
from statistics import median

from transformers import set_seed

from bert_multitask import MultitaskBertModel, MultitaskTrainer, MultitaskTrainingArguments
from bert_multitask.data.rows import load_rows
from bert_multitask.data.token_rows import rows_by_task
from bert_multitask.data.tokens import load_tokenizer
from bert_multitask.evaluation.predict import predict_tasks
from bert_multitask.model.tasks import TASKS

from .rig import Clock, alternate, training_settings

ROWS = 32  # of a step: the default of --per_device_train_batch_size
WARM_UP = 1  # batches that are not timed
SENTENCES = (
    {"name": "grade", "kind": "classification", "label": "grade", "label_names": list("01234")},
    {"name": "good", "kind": "binary", "label": "good", "label_names": ["no", "yes"]},
    {"name": "score", "kind": "regression", "label": "grade", "score_range": [0, 4]},
)
# The last layer then runs for all tokens, and not for [CLS] alone.
WORDS = ({"name": "short", "kind": "token_classification", "label": "short", "label_names": ["no", "yes"]},)


def group(options) -> dict:
    """A group of three labels of the same texts, of SST, against three tasks: training steps, and predictions."""
    result = {}
    for what, labels in (("three labels", SENTENCES), ("one a tag for each word", SENTENCES[:2] + WORDS)):
        labels = [label | ({"metric": "accuracy"} if label in WORDS else {}) for label in labels]
        sides = [Side(options, labels, together) for together in (True, False)]
        for act in ("train", "predict"):
            rounds = list(alternate(options.rounds, *(getattr(side, act) for side in sides)))
            one, three = ([seconds[side] for seconds in rounds] for side in (0, 1))
            verb = {"train": "training", "predict": "prediction"}[act]
            result[f"{verb}, {what}: processor seconds of a group, a row"] = median(one) / options.steps / ROWS
            ratios = [tasks / whole for whole, tasks in zip(one, three, strict=True)]
            result[f"{verb}, {what}: times cheaper"] = median(ratios)
            result[f"{verb}, {what}: least of the rounds"] = min(ratios)
    return result


def make_rows(data_dir: str, count: int) -> list[dict]:
    """Rows of SST with the labels of SENTENCES and WORDS."""
    rows = load_rows(TASKS["sst"], data_dir, splits=["train"])["train"]
    return [
        {
            "sentence": row["text"],
            "grade": row["label"],
            "good": int(row["label"] > 2),
            "short": [int(len(word) < 4) for word in row["text"].split()],
        }
        for row in (rows[number % len(rows)] for number in range(count))
    ]


class Side:
    """A model that has the labels as a group, or as a task each; every row is seen once with each label."""

    def __init__(self, options, labels: Sequence[dict], together: bool):
        set_seed(0)
        self.options, self.names = options, [label["name"] for label in labels]
        tasks = [{"name": "group", "labels": labels}] if together else labels
        self.model = MultitaskBertModel.from_pretrained(options.model_name_or_path, tasks=tasks)
        self.tokenizer = load_tokenizer(options.model_name_or_path, self.model.config.vocab_size)
        rows = make_rows(options.data_dir, (options.steps + WARM_UP) * ROWS)
        given = dict.fromkeys(self.names, rows)
        self.tokens = rows_by_task(given, self.model, "rows", "train", self.tokenizer)
        self.each = 1 if together else len(labels)  # steps of a batch of rows

    def train(self, seed: int) -> float:
        """The processor's seconds of the steps after the warm-up."""
        plan = list(self.model.units) * (WARM_UP + self.options.steps)
        args = MultitaskTrainingArguments(**training_settings(self.options) | {"max_steps": -1}, data_seed=seed)
        clock = Clock(time.process_time)
        trainer = MultitaskTrainer(self.model, args, self.tokens, plan=plan, callbacks=[clock])
        trainer.remove_callback(trainer.table)  # a benchmark prints what it measured
        trainer.train()
        return clock.ends[-1] - clock.ends[WARM_UP * self.each - 1]

    def predict(self, _) -> float:
        """The same of the predictions of as many rows, tokenised already."""
        groups = [self.names] if self.each == 1 else [[name] for name in self.names]
        start = time.process_time()
        for names in groups:
            tokens = self.tokens[names[0]].select(range(self.options.steps * ROWS))
            predict_tasks(self.model, names, tokens, 64)
        return time.process_time() - start
