"""Which files of a run are pushed to the Hub, and how; what the card says of the training."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, ModelCard, create_branch, create_commit, create_repo
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from ..evaluation.metrics import score_keys
from ..model.card import add_picture, is_hub_id
from ..model.errors import InputError, explained
from ..model.tasks import Task
from .arguments import MultitaskTrainingArguments

CARD, PICTURE = "README.md", "scores.png"
# All that others need to use and judge a model. Nothing else of the folder: run.json, TensorBoard's files and Trainer's
# know paths and names of the machine.
PUBLIC = [CARD, "config.json", "model*.safetensors*", "tokenizer*", "vocab.txt", "*.py", "metrics.json"]
# What a model card says of the training arguments: always, and where they are not as they are by default.
CARD_SETTINGS = (
    "seed schedule budget learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm bf16 fp16"
).split()
CARD_SMART = ("smart_projection", "smart_place", "smart_reduction", "smart_radius", "smart_steps")  # with SMART
CARD_LEVERS = ("head_learning_rate", "layer_decay", "ema_decay", "ema_start", "sampling_temperature")


def open_repo(repo_id: str, token: str | None = None, private: bool | None = None, space: bool = False) -> str:
    """Make the repository of a model, or a Space, if it is not there; returns its full id.

    Raises:
        InputError: the Hub cannot be reached, or refuses the token or the name.
    """
    kind = {"repo_type": "space", "space_sdk": "gradio"} if space else {}
    flag = "--space" if space else "--hub_model_id"
    what = f"{flag} {repo_id}: the Hub gives no repository of that name to write to"
    token_hint = "is the token one with write access (`hf auth login`, HF_TOKEN or --hub_token)?"
    with (
        explained(f"{flag} {repo_id}: the Hub is out of reach", hint="check the network and HF_HUB_OFFLINE"),
        explained(what, HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, hint=token_hint),
    ):
        return create_repo(repo_id, token=token, private=private, exist_ok=True, **kind).repo_id


def push_folder(
    folder: str | Path,
    repo_id: str,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Push a run",
    picture: bytes | None = None,
    **told: object,
) -> str:
    """Upload the PUBLIC files of a run folder, in one commit; the card gets the repository's name.

    Args:
        repo_id: of a repository that exists (`open_repo`).
        revision: branch; made if it is not there. By default main.
        token: with write access; by default the one of this machine.
        picture: of the scores, a PNG, which is pushed beside the card and shown in it.
        told: further fields of the card's metadata, such as `license` and `language`; None leaves one as it is.

    Returns:
        The commit's address.

    Raises:
        InputError: nothing was committed; the folder is as it was.
    """
    contents: dict[str, bytes | Path] = {file.name: file for file in public_files(Path(folder))}
    command = f"bert-multitask push {folder} --hub_model_id {repo_id}"
    command += f" --hub_revision {revision}" if revision else ""
    what = f"the run in {folder} is whole, but it could not be pushed to {repo_id}"
    with explained(what, hint=f"try again with `{command}`"):
        if revision is not None:
            create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        if CARD in contents:
            contents[CARD] = named_card(contents[CARD], repo_id, revision, picture is not None, told)
        if picture is not None:
            contents[PICTURE] = picture
        return commit_files(contents, repo_id, commit_message, token=token, revision=revision)


def commit_files(files: Mapping[str, bytes | Path], repo_id: str, message: str, **options) -> str:
    """Upload {path in the repository: content, or the file that has it} in one commit; returns its address."""
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    return create_commit(repo_id, operations, commit_message=message, **options).commit_url


def public_files(folder: Path) -> list[Path]:
    """The PUBLIC files of a folder, sorted.

    Raises:
        InputError: one is a link that leaves the folder, which could publish any file of the machine.
    """
    files = sorted({file for pattern in PUBLIC for file in folder.glob(pattern) if file.is_file()})
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{file} is a link to {file.resolve()}; replace it with a copy, or remove it, and push again"
            )
    return files


def named_card(file: Path, repo_id: str, revision: str | None, picture: bool, told: Mapping[str, object]) -> bytes:
    """The card in a run folder, with the name of its repository in the lines that load the model, further metadata, and
    perhaps a picture of the scores."""
    card = ModelCard.load(file)
    for field, value in told.items():
        if value is not None:
            setattr(card.data, field, value)
    if picture:
        card.text = add_picture(card.text, PICTURE)
    if card.data.eval_results:
        card.data.model_name = repo_id.split("/")[-1]
    where = f'from_pretrained("{repo_id}"' + (f', revision="{revision}"' if revision else "")
    card.text = re.sub(r'from_pretrained\("[^"]*"(, revision="[^"]*")?', where, card.text)
    return str(card).encode()


def base_license(name: str | None) -> str | None:
    """The licence of the checkpoint that training started from, as its card says: in its folder, or on the Hub. None
    where there is none to read."""
    try:
        if name and Path(name, CARD).is_file():
            return ModelCard.load(Path(name, CARD)).data.license
        return ModelCard.load(name).data.license if is_hub_id(name) else None
    except Exception:  # no card, a damaged one, no network: the client's errors share no base class
        return None


def card_settings(args: MultitaskTrainingArguments, tasks: Mapping[str, Task], batch_size: int) -> dict[str, object]:
    """What the card says of the training, of `batch_size` rows a step."""
    settings = {name: getattr(args, name) for name in CARD_SETTINGS} | {"rows of a step": batch_size}
    smart = {name: task.smart_weight for name, task in tasks.items() if task.smart_weight}
    if smart:
        settings["smart_weight"] = ", ".join(f"{name} {weight:g}" for name, weight in smart.items())
        settings |= {name: getattr(args, name) for name in CARD_SMART}
    settings |= {name: vars(args)[name] for name in CARD_LEVERS if vars(args)[name] != getattr(type(args), name)}
    settings |= {f"loss_weight of {name}": task.loss_weight for name, task in tasks.items() if task.loss_weight != 1}
    for field in ("rdrop_weight", "class_weights", "label_smoothing"):
        values = {name: getattr(task, field) for name, task in tasks.items()}
        settings |= {f"{field} of {name}": value for name, value in values.items() if value}
    return settings


def last_scores(history: Sequence[Mapping], tasks: Mapping[str, Task]) -> dict[str, tuple]:
    """The scores of the last evaluation of all tasks among log entries, {task: (score, None, None)}, or nothing."""
    keys = score_keys(tasks)
    for entry in reversed(history):
        if entry.keys() >= {*keys.values()}:
            return {name: (entry[key], None, None) for name, key in keys.items()}
    return {}
