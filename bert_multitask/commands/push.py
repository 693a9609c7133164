"""Push a finished run to the Hub: model, tokenizer, code, card and scores, and nothing of this machine.

    bert-multitask push RUN --hub_model_id NAME/MODEL

The token is that of `hf auth login`, or HF_TOKEN. Training pushes by itself with --push_to_hub.
"""

from pathlib import Path

from ..model.errors import InputError
from ..training.hub import open_repo, push_folder
from .command_line import CommandParser


def main(argv: list[str]) -> None:
    """Push, as a command line says."""
    parser = CommandParser("push", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("--hub_model_id", required=True, help="repository, made if it is not there")
    parser.add_argument("--hub_revision", help="branch, made if it is not there; by default main")
    parser.add_argument("--hub_private_repo", action="store_true", default=None, help="make a new repository private")
    options = parser.parse_args(argv)
    if not (options.run / "metrics.json").is_file():
        raise InputError(f"{options.run} holds no finished run; expected a folder that training has left")
    repo_id = open_repo(options.hub_model_id, private=options.hub_private_repo)
    print(f"pushed: {push_folder(options.run, repo_id, options.hub_revision)}")
