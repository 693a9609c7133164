"""Train one BERT on several tasks, as one YAML file and the flags after it say.

    accelerate launch recipes/train_multitask.py recipes/configs/rr_tpe.yaml --data_dir DATA --output_dir RUN

Leaves in RUN the model and tokenizer, metrics.json, history.jsonl, predictions/ and run.json (docs/architecture.md).
Exit code 2 and one line of explanation for whatever is wrong with the input.
"""

import sys
from pathlib import Path

from transformers import AutoTokenizer, set_seed

from bert_multitask.arguments import MultitaskTrainingArguments, RecipeParser, RunArguments
from bert_multitask.configuration import InputError, resolve_folder
from bert_multitask.data import describe_rows, fingerprint, load_rows, tokenise, usable_rows
from bert_multitask.heads import MultitaskBertModel
from bert_multitask.prediction import prediction_table, write_predictions
from bert_multitask.run_folder import RunFolder
from bert_multitask.tasks import Task
from bert_multitask.trainer import HistoryFile, MultitaskTrainer

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "rr_tpe.yaml"


def main(argv: list[str]) -> None:
    parser = RecipeParser((RunArguments, MultitaskTrainingArguments), DEFAULT_CONFIG, __doc__)
    run, args, _ = parser.parse(argv)
    folder = RunFolder(args, overwrite=run.overwrite)
    set_seed(args.seed)

    # All input is checked before anything is computed.
    tasks = run.load_tasks()
    rows = {task.name: load_rows(task, run.data_dir) for task in tasks}
    model, tokenizer = load_checkpoint(run, tasks)
    max_length = min(run.max_length, model.config.max_position_embeddings)
    with args.main_process_first(desc="tokenising"):
        tokens = {
            task.name: {
                split: tokenise(task, usable_rows(task, rows[task.name][split], split), tokenizer, max_length)
                for split in rows[task.name]
            }
            for task in tasks
        }

    trainer = MultitaskTrainer(
        model,
        args,
        train_dataset={name: splits["train"] for name, splits in tokens.items()},
        eval_dataset={name: splits["dev"] for name, splits in tokens.items()},
        processing_class=tokenizer,
        callbacks=[HistoryFile(folder.path / "history.jsonl")],
    )
    data = {
        name: {split: {"rows": len(part), "sha256": fingerprint(part)} for split, part in splits.items()}
        for name, splits in rows.items()
    }
    folder.begin(run, trainer.plan, tasks, data)
    if args.process_index == 0:
        print(describe_rows(tasks, rows), trainer.describe_plan(), sep="\n\n", flush=True)

    trainer.train(resume_from_checkpoint=folder.checkpoint)
    trainer.save_model()
    if args.do_predict:
        outputs = {
            (name, split): trainer.predict(splits[split])
            for name, splits in tokens.items()
            for split in splits
            if split != "train"
        }
        metrics = trainer.score({name: outputs[name, "dev"] for name in tokens})
        if args.process_index == 0:
            for (name, split), output in outputs.items():
                table = prediction_table(model.tasks[name], tokens[name][split]["id"], output.predictions)
                write_predictions(model.tasks[name], table, folder.path / "predictions" / f"{name}-{split}")
    else:
        metrics = trainer.evaluate()
    folder.finish(metrics, tasks)


def load_checkpoint(run: RunArguments, tasks: list[Task]):
    """The model, with new heads for the tasks, and its tokenizer."""
    rate = run.encoder_dropout
    dropout = {} if rate is None else {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    try:
        model = MultitaskBertModel.from_pretrained(run.model_name_or_path, tasks=tasks, **dropout)
        tokenizer = AutoTokenizer.from_pretrained(resolve_folder(run.model_name_or_path))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run.model_name_or_path}: cannot be loaded ({error}); name a BERT checkpoint with --model_name_or_path, "
            "or try `make quickstart`, which needs no download"
        ) from error
    return model, tokenizer


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
