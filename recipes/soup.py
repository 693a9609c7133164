"""Average the weights of runs that began alike into one model, a "model soup" (Wortsman et al., 2022).

    python recipes/soup.py RUN RUN RUN --output_dir SOUP
    python recipes/predict.py SOUP --split dev --output_dir SOUP/predictions

The runs began with the same checkpoint and --seed, and differ in --data_seed, learning rate, dropout … Leaves in SOUP
an ordinary checkpoint with its tokenizer, and run.json: the first run's record, and which runs were averaged.
"""

import argparse

from bert_multitask.commands.command_line import HelpFormatter, local_path
from bert_multitask.data.records import write_json
from bert_multitask.inference.soup import average_weights
from bert_multitask.inference.trained_run import TrainedRun
from bert_multitask.model.errors import InputError
from bert_multitask.training.run import run_recipe


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    parser.add_argument("--output_dir", type=local_path, required=True, help="folder of the averaged model; a new one")
    options = parser.parse_args(argv)
    if options.output_dir.exists() and any(options.output_dir.iterdir()):
        raise InputError(f"--output_dir {options.output_dir} is not empty; choose another folder")
    runs = [TrainedRun.open(name) for name in options.runs]
    average_weights(runs).save_pretrained(options.output_dir)
    runs[0].load_tokenizer().save_pretrained(options.output_dir)
    record = runs[0].record | {"decides": {"average_of": options.runs}, "batches": None}
    write_json(options.output_dir / "run.json", record)
    print(f"average of {len(options.runs)} runs: {options.output_dir}", flush=True)


if __name__ == "__main__":
    run_recipe(main)
