"""Push a finished run to the Hub: model, tokenizer, code, card and scores, and nothing of this machine.

    bert-multitask push RUN --hub_model_id NAME/MODEL
    bert-multitask push RUN --space NAME/DEMO                # a page to try it: the demo, with the run's weights
    bert-multitask push NAME/MODEL --space NAME/DEMO         # the same of a model that is on the Hub
    bert-multitask push RUN --output_dir FOLDER              # only writes the files of the page

The token is that of `hf auth login`, or HF_TOKEN. Training pushes by itself with --push_to_hub.
"""

from pathlib import Path

from ..inference.space import push_space, space_files, write_space
from ..model.errors import InputError
from ..training.hub import open_repo, push_folder
from .command_line import CommandParser, local_path


def main(argv: list[str]) -> None:
    """Push, as a command line says."""
    parser = CommandParser("push", __doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a finished run; of a page also a Hub id")
    parser.add_argument("--hub_model_id", help="repository, made if it is not there")
    parser.add_argument("--hub_revision", help="branch, made if it is not there; by default main")
    parser.add_argument("--hub_private_repo", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--space", help="a Space that shows the demo, made if it is not there")
    parser.add_argument("--output_dir", type=local_path, help="write the files of the Space here, and upload nothing")
    options = parser.parse_args(argv)
    run, model_id = options.run, options.hub_model_id
    if not (model_id or options.space or options.output_dir):
        raise InputError("nothing to do: give --hub_model_id, --space or --output_dir")
    if (model_id or Path(run).is_dir()) and not Path(run, "metrics.json").is_file():
        raise InputError(f"{run} holds no finished run; expected a folder that training has left")
    if options.output_dir:
        title = (options.space or Path(run).name).split("/")[-1]
        write_space(space_files(run, title), options.output_dir)
        print(f"Space: {options.output_dir}")
        return
    if model_id:
        repo_id = open_repo(model_id, private=options.hub_private_repo)
        print(f"pushed: {push_folder(run, repo_id, options.hub_revision)}")
    if options.space:
        files = space_files(run, options.space.split("/")[-1])
        repo_id = open_repo(options.space, private=options.hub_private_repo, space=True)
        print(f"pushed: {push_space(files, repo_id)}")
