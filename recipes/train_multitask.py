"""Train one BERT on several tasks, or one for each, as one YAML file and the flags after it say.

    accelerate launch recipes/train_multitask.py recipes/configs/rr_tpe.yaml --data_dir DATA --output_dir RUN

Leaves in RUN the model and tokenizer, metrics.json, history.jsonl, predictions/ and run.json (docs/architecture.md).
Exit code 2 and one line of explanation for whatever is wrong with the input.
"""

from pathlib import Path

from bert_multitask.commands.command_line import RecipeParser
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.run import run_recipe, train

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "rr_tpe.yaml"


def main(argv: list[str]) -> None:
    run, args, _ = RecipeParser((RunArguments, MultitaskTrainingArguments), DEFAULT_CONFIG, __doc__).parse(argv)
    train(run, args)


if __name__ == "__main__":
    run_recipe(main)
