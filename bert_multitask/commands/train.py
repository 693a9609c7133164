"""Train one encoder on several tasks, or one for each: a YAML file, and the flags after it.

    bert-multitask train CONFIG.yaml --data_dir DATA --output_dir RUN
    accelerate launch --num_processes 4 -m bert_multitask train CONFIG.yaml …

CONFIG.yaml may be one that the package ships: quickstart, rr_tpe, paper/baseline …
RUN gets the model, its predictions and scores (docs/architecture.md).
"""

from ..training.arguments import MultitaskTrainingArguments, RunArguments
from ..training.run import train
from .command_line import RecipeParser


def main(argv: list[str]) -> None:
    """Train, as a command line says."""
    kinds = RunArguments, MultitaskTrainingArguments
    run, args, _ = RecipeParser(kinds, "rr_tpe.yaml", __doc__, "train").parse(argv)
    train(run, args)
