"""`bert-multitask COMMAND …` and `python -m bert_multitask COMMAND …`: each command is a file of `commands/`."""

import importlib
import sys

COMMANDS = {
    "init": "write the configuration that trains on a table of yours",
    "train": "train one BERT on several tasks",
    "tune": "search hyperparameters",
    "predict": "predict every row of a file or a split",
    "ensemble": "combine the predictions of several models",
    "soup": "average the weights of runs that started from the same weights",
    "report": "scores with intervals, curves and errors, as HTML and Markdown",
    "export": "one task, or an encoder, as a model that Transformers knows",
    "push": "push a finished run to the Hub",
    "demo": "a page on which to try a run, or two side by side",
}


def main() -> None:
    """Run the command that the command line names. Nothing else is imported, so that the help is quick."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print("usage: bert-multitask COMMAND [argument ...]; each has --help\n")
        print("\n".join(f"  {command:10}{words}" for command, words in COMMANDS.items()))
    elif name not in COMMANDS:
        print(f"error: no command {name!r}; choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    else:
        command = importlib.import_module(f"{__package__}.commands.{name}")
        run_recipe = importlib.import_module(f"{__package__}.training.run").run_recipe
        run_recipe(command.main, getattr(command, "STOPPED", None), argv)


if __name__ == "__main__":
    main()
