"""Push a finished run to the Hub: its model, tokenizer, code, card and scores. Local paths and settings stay here.

    bert-multitask push RUN --hub_model_id NAME/MODEL
    bert-multitask push RUN --hub_model_id NAME/MODEL --license mit --language en --scores_picture
    bert-multitask push RUN --space NAME/DEMO                # a page to try it: the demo, with the run's weights
    bert-multitask push NAME/MODEL --space NAME/DEMO         # the same of a model that is on the Hub
    bert-multitask push RUN --output_dir FOLDER              # only writes the files of the page

The token is that of `hf auth login`, or HF_TOKEN. Training pushes by itself with --push_to_hub.
"""

from pathlib import Path

from huggingface_hub import ModelCard

from ..inference.space import push_space, space_files, write_space
from ..model.errors import InputError
from ..reporting.plots import score_intervals, to_png
from ..training.hub import CARD, open_repo, push_folder
from .command_line import CommandParser, new_folder


def main(argv: list[str]) -> None:
    """Push, as a command line says."""
    parser = CommandParser("push", __doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a finished run; for --space also a Hub id")
    parser.add_argument("--hub_model_id", help="repository; it is created if it does not exist")
    parser.add_argument("--hub_revision", help="branch; it is created if it does not exist; by default main")
    parser.add_argument("--hub_private_repo", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--license", help="the Hub's name of the licence, for the card")
    parser.add_argument("--language", nargs="+", help="codes of the languages that the model understands, for the card")
    parser.add_argument("--scores_picture", action="store_true", help="push a picture of the scores, shown in the card")
    parser.add_argument("--space", help="a Space that shows the demo; it is created if it does not exist")
    parser.add_argument("--output_dir", type=new_folder, help="write the files of the Space here, and upload nothing")
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
        told = {"license": options.license, "language": options.language}
        picture = draw_scores(Path(run, CARD)) if options.scores_picture else None
        repo_id = open_repo(model_id, private=options.hub_private_repo)
        print(f"pushed: {push_folder(run, repo_id, options.hub_revision, picture=picture, **told)}")
    if options.space:
        files = space_files(run, options.space.split("/")[-1])
        repo_id = open_repo(options.space, private=options.hub_private_repo, space=True)
        print(f"pushed: {push_space(files, repo_id)}")


def draw_scores(card: Path) -> bytes:
    """A picture of the scores in a run's card, as a PNG. Raises InputError if the card has none."""
    results = ModelCard.load(card).data.eval_results if card.is_file() else None
    if not results:
        raise InputError(f"{card} has no scores for --scores_picture; leave it out, or evaluate when training ends")
    scores = {}
    for result in results:
        low, high = (result.metric_args or {}).get("confidence_interval_95", (None, None))
        scores[result.dataset_name] = result.metric_type, result.metric_value, low, high
    return to_png(score_intervals(scores))
