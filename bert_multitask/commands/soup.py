"""Average the weights of runs that started from the same weights, a "model soup" (Wortsman et al., 2022).

    bert-multitask soup RUN RUN RUN --output_dir SOUP
    bert-multitask predict SOUP --split dev --output_dir SOUP/predictions

The runs start from the same checkpoint and --seed, and differ in --data_seed, learning rate, dropout … Leaves in SOUP
an ordinary checkpoint with its tokenizer, and run.json: the first run's record, and which runs were averaged.
"""

import shlex

from ..data.records import write_json
from ..inference.soup import average_weights
from ..inference.trained_run import TrainedRun
from .command_line import CommandParser, new_folder


def main(argv: list[str]) -> None:
    """Average, as a command line says."""
    parser = CommandParser("soup", __doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    parser.add_argument("--output_dir", type=new_folder, required=True, help="folder of the averaged model; a new one")
    options = parser.parse_args(argv)
    runs = [TrainedRun.open(name) for name in options.runs]
    average_weights(runs).save_pretrained(options.output_dir)
    runs[0].load_tokenizer().save_pretrained(options.output_dir)
    record = runs[0].records.run | {"decides": {"average_of": options.runs}, "batches": None}
    write_json(options.output_dir / "run.json", record)
    print(f"average of {len(options.runs)} runs: {options.output_dir}\n\nnext:")
    names = (shlex.quote(str(path)) for path in (options.output_dir, options.output_dir / "predictions"))
    print("  bert-multitask predict {} --split dev --output_dir {}".format(*names), flush=True)
