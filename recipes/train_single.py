"""Fine-tune BERT on one task, or train the task's head alone on a frozen BERT.

    accelerate launch recipes/train_single.py --tasks sst --option finetune --data_dir DATA --output_dir RUN
    accelerate launch recipes/train_single.py --tasks cfimdb --option pretrain --data_dir DATA --output_dir RUN

The task is sst, cfimdb, quora, sts or one of your own, as in train_multitask.py, and so is what the run leaves.
"""

from dataclasses import dataclass

from transformers.hf_argparser import HfArg

from bert_multitask.commands.command_line import RecipeParser
from bert_multitask.model.errors import InputError
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.run import run_recipe, train

# option -> learning rate, as the course's classifier has them.
OPTIONS = {"finetune": 1e-5, "pretrain": 1e-3}


@dataclass
class SingleTaskArguments(MultitaskTrainingArguments):
    """`MultitaskTrainingArguments` with the choice between the whole model and its head."""

    option: str = HfArg(
        default="finetune",
        help="finetune, the whole model; pretrain, the head on a frozen encoder",
        metadata={"choices": list(OPTIONS)},
    )
    learning_rate: float | None = HfArg(
        default=None, help="peak learning rate; by default 1e-5 to finetune and 1e-3 to pretrain"
    )

    def __post_init__(self):
        if self.learning_rate is None:
            self.learning_rate = OPTIONS[self.option]
        super().__post_init__()


def main(argv: list[str]) -> None:
    run, args, _ = RecipeParser((RunArguments, SingleTaskArguments), "single.yaml", __doc__).parse(argv)
    if len(run.tasks) != 1:
        raise InputError(f"--tasks names {len(run.tasks)} tasks; this recipe trains one, train_multitask.py several")
    if run.freeze_encoder:
        raise InputError("--freeze_encoder is called --option pretrain here, which also raises the learning rate")
    run.freeze_encoder = args.option == "pretrain"
    train(run, args)


if __name__ == "__main__":
    run_recipe(main)
