"""Train one BERT on several tasks, as one YAML file and the flags after it say.

    accelerate launch recipes/train_multitask.py recipes/configs/rr_tpe.yaml --data_dir DATA --output_dir RUN

Leaves in RUN the model and tokenizer, metrics.json, history.jsonl, predictions/ and run.json (docs/architecture.md).
Exit code 2 and one line of explanation for whatever is wrong with the input.
"""

import os
import sys
from pathlib import Path

from transformers import set_seed

from bert_multitask.arguments import MultitaskTrainingArguments, RecipeParser, RunArguments, check_launch
from bert_multitask.configuration import InputError
from bert_multitask.data import describe_rows, load_rows, load_tokenizer, tokenise_splits
from bert_multitask.heads import MultitaskBertModel
from bert_multitask.prediction import prediction_table, write_predictions
from bert_multitask.run_folder import RunFolder
from bert_multitask.tasks import Task
from bert_multitask.trainer import HistoryFile, MultitaskTrainer

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "rr_tpe.yaml"


def main(argv: list[str]) -> None:
    parser = RecipeParser((RunArguments, MultitaskTrainingArguments), DEFAULT_CONFIG, __doc__)
    run, args, _ = parser.parse(argv)
    check_launch(args)
    folder = RunFolder(args, overwrite=run.overwrite)
    set_seed(args.seed)

    # All input is checked before anything is computed.
    tasks = run.load_tasks()
    rows = {task.name: load_rows(task, run.data_dir) for task in tasks}
    model = load_model(run, tasks)
    tokenizer = load_tokenizer(run.model_name_or_path, model.config.vocab_size)
    max_length = min(run.max_length, model.config.max_position_embeddings)
    with args.main_process_first(desc="tokenising"):
        tokens = {task.name: tokenise_splits(task, rows[task.name], tokenizer, max_length) for task in tasks}

    trainer = MultitaskTrainer(
        model,
        args,
        train_dataset={name: splits["train"] for name, splits in tokens.items()},
        eval_dataset={name: splits["dev"] for name, splits in tokens.items()},
        processing_class=tokenizer,
        callbacks=[HistoryFile(folder.path / "history.jsonl")],
    )
    folder.begin(run, tasks, rows, trainer.batch_size)
    if args.process_index == 0:
        print(describe_rows(tasks, rows), trainer.describe_plan(), sep="\n\n", flush=True)

    trainer.train(resume_from_checkpoint=folder.checkpoint)
    trainer.save_model()
    metrics = predict_splits(trainer, tokens, folder.path / "predictions") if args.do_predict else trainer.evaluate()
    folder.finish(metrics, tasks)


def load_model(run: RunArguments, tasks: list[Task]) -> MultitaskBertModel:
    """The checkpoint, with new heads for the tasks."""
    rate = run.encoder_dropout
    dropout = {} if rate is None else {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    try:
        return MultitaskBertModel.from_pretrained(run.model_name_or_path, tasks=tasks, **dropout)
    except InputError:
        raise
    except Exception as error:  # a broken checkpoint fails in a dozen ways
        raise InputError(
            f"{run.model_name_or_path}: cannot be loaded ({error}); name a BERT checkpoint with --model_name_or_path, "
            "or try `make quickstart`, which needs no download"
        ) from error


def predict_splits(trainer: MultitaskTrainer, tokens: dict, folder: Path) -> dict[str, float]:
    """Write the predictions of every dev and test row; return the dev scores, as `evaluate` would give them."""
    dev = {}
    for name, splits in tokens.items():
        for split in [split for split in splits if split != "train"]:
            output = trainer.predict(splits[split])
            if split == "dev":
                dev[name] = output
            if trainer.is_world_process_zero():
                task = trainer.model.tasks[name]
                table = prediction_table(task, splits[split]["id"], output.predictions)
                write_predictions(task, table, folder / f"{name}-{split}")
    return trainer.score(dev)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; go on with --resume_from_checkpoint", file=sys.stderr)
        sys.exit(130)
