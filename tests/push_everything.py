"""Run as a script, with a hub's address and token in the environment: every way to push, one line of JSON a way.

python push_everything.py CONFIG RUN OTHER_RUN
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import yaml


def command(name: str, *argv: str) -> dict:
    """Run a command in this process: its exit code and what it printed."""
    from bert_multitask.__main__ import main

    sys.argv = ["bert-multitask", name, *argv]
    printed, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main()
    except SystemExit as stop:
        code = stop.code
    return {"code": code, "printed": printed.getvalue()}


def push_trainer(config: str, run: str) -> float:
    """Evaluate a run's model in a trainer, and push that to a branch; the overall score."""
    from bert_multitask import (
        TASKS,
        MultitaskBertModel,
        MultitaskTrainer,
        MultitaskTrainingArguments,
        load_rows,
        load_tokenizer,
        tokenise_splits,
    )

    model, data = MultitaskBertModel.from_pretrained(run), yaml.safe_load(Path(config).read_text())["data_dir"]
    tokenizer = load_tokenizer(run, model.config.vocab_size)
    tokens = {name: tokenise_splits(TASKS[name], load_rows(TASKS[name], data), tokenizer, 32) for name in model.tasks}
    args = MultitaskTrainingArguments(
        output_dir=f"{run}-trainer", hub_model_id="me/trainer", max_steps=1, report_to="none", disable_tqdm=True
    )
    train, dev = ({name: splits[part] for name, splits in tokens.items()} for part in ("train", "dev"))
    trainer = MultitaskTrainer(model, args, train_dataset=train, eval_dataset=dev, processing_class=tokenizer)
    overall = trainer.evaluate()["eval_overall"]
    trainer.push_to_hub(revision="third")
    return overall


def main(config: str, run: str, other: str) -> None:
    from bert_multitask import MultitaskBertModel

    train = ["train", config, "--max_steps", "2", "--push_to_hub"]
    results = {
        "refused": command(*train, "--output_dir", run, "--hub_model_id", "me/run", "--hub_token", "hf_wrong"),
        "begun": Path(run).exists(),
        "trained": command(*train, "--output_dir", run, "--hub_model_id", "me/run"),
        "branch": command("push", run, "--hub_model_id", "me/run", "--hub_revision", "second"),
        "private": command("push", run, "--hub_model_id", "me/secret", "--hub_private_repo"),
        "broken": command(*train, "--output_dir", other, "--hub_model_id", "me/broken"),
        "unfinished": command("push", str(Path(config).parent), "--hub_model_id", "me/x"),
    }
    results["trainer"] = push_trainer(config, run)
    MultitaskBertModel.from_pretrained("me/run", revision="second").push_to_hub("me/alone")
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
