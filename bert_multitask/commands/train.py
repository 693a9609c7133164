"""Train one BERT on several tasks, or one for each, as one YAML file and the flags after it say.

    bert-multitask train CONFIG.yaml --data_dir DATA --output_dir RUN
    accelerate launch --num_processes 4 -m bert_multitask train CONFIG.yaml --data_dir DATA --output_dir RUN

CONFIG.yaml may be one that the package ships: quickstart, rr_tpe (the default), paper/baseline … In a checkout,
accelerate launch recipes/train_multitask.py is the same. Leaves in RUN the model and tokenizer, metrics.json,
history.jsonl, predictions/ and run.json (docs/architecture.md).
Exit code 2 and one line of explanation for whatever is wrong with the input.
"""

from ..training.arguments import MultitaskTrainingArguments, RunArguments
from ..training.run import train
from .command_line import RecipeParser


def main(argv: list[str]) -> None:
    """Train, as a command line says."""
    kinds = RunArguments, MultitaskTrainingArguments
    run, args, _ = RecipeParser(kinds, "rr_tpe.yaml", __doc__, "train").parse(argv)
    train(run, args)
