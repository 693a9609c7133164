"""Which files of a run are pushed to the Hub, and the methods of a trainer that push them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, ModelCard, create_branch, create_commit, create_repo
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME

from ..evaluation.metrics import describe_metric, describe_overall
from ..model.card import model_card
from ..model.encoder import share_weights
from ..model.errors import InputError

CARD = "README.md"
# All that others need to use and judge a model. Nothing else of the folder: run.json, TensorBoard's files and Trainer's
# know paths and names of the machine.
PUBLIC = [CARD, "config.json", "model*.safetensors*", "tokenizer*", "vocab.txt", "*.py", "metrics.json"]
# What a model card says of the training arguments.
CARD_SETTINGS = (
    "seed schedule budget learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm bf16 fp16"
).split()


def open_repo(repo_id: str, token: str | None = None, private: bool | None = None) -> str:
    """Make the repository if it is not there; returns its full id.

    Raises:
        InputError: the Hub cannot be reached, or refuses the token or the name.
    """
    try:
        return create_repo(repo_id, token=token, private=private, exist_ok=True).repo_id
    except Exception as error:  # the client's errors and its network library's share no base class
        raise InputError(
            f"--hub_model_id {repo_id}: the Hub gives no repository of that name to write to ({reason(error)}); is the "
            "token one with write access (`hf auth login`, HF_TOKEN or --hub_token)?"
        ) from error


def reason(error: Exception) -> str:
    """The message of the Hub's client, without its hint at a page about HTTP."""
    return " ".join(line for line in str(error).splitlines() if line and not line.startswith("For more information"))


def push_folder(
    folder: str | Path,
    repo_id: str,
    revision: str | None = None,
    token: str | None = None,
    commit_message: str = "Push a run",
) -> str:
    """Upload the PUBLIC files of a run folder, in one commit; the card gets the repository's name.

    Args:
        folder: of the run.
        repo_id: of a repository that exists (`open_repo`).
        revision: branch; made if it is not there. By default main.
        token: with write access; by default the one of this machine.
        commit_message: of the commit.

    Returns:
        The commit's address.

    Raises:
        InputError: nothing was committed; the folder is as it was.
    """
    files = public_files(Path(folder))
    try:
        if revision is not None:
            create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        contents = {file.name: named_card(file, repo_id, revision) if file.name == CARD else file for file in files}
        operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
        return create_commit(
            repo_id, operations, commit_message=commit_message, token=token, revision=revision
        ).commit_url
    except Exception as error:  # as above
        where = f" --hub_revision {revision}" if revision else ""
        raise InputError(
            f"the run in {folder} is whole, but it could not be pushed to {repo_id} ({reason(error)}); try again with "
            f"`bert-multitask push {folder} --hub_model_id {repo_id}{where}`"
        ) from error


def public_files(folder: Path) -> list[Path]:
    """The PUBLIC files of a folder, sorted.

    Raises:
        InputError: one is a link that leaves the folder; it could publish any file of the machine.
    """
    files = sorted({file for pattern in PUBLIC for file in folder.glob(pattern) if file.is_file()})
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"{file} is a link to {file.resolve()}; replace it with a copy, or remove it, and push again"
            )
    return files


def named_card(file: Path, repo_id: str, revision: str | None = None) -> bytes:
    """The card in a run folder, with the lines that load the model naming where it goes."""
    card = ModelCard.load(file)
    if card.data.eval_results:
        card.data.model_name = repo_id.split("/")[-1]
    where = f'from_pretrained("{repo_id}"' + (f', revision="{revision}"' if revision else "")
    card.text = re.sub(r'from_pretrained\("[^"]*"(, revision="[^"]*")?', where, card.text)
    return str(card).encode()


class HubTrainer(Trainer):
    """`transformers.Trainer` that leaves no pickle of its arguments, writes our card, and pushes the PUBLIC files.

    A subclass has `describe_plan`, the schedule as a table, and `batch_size`, the rows of an optimizer step.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Overridden to leave no training_args.bin, a pickle, which is unsafe to read and which nothing here reads; and
        for the permissions of an adapter's weights."""
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        Path(folder, TRAINING_ARGS_NAME).unlink(missing_ok=True)
        share_weights(folder)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Overridden for one clear error, before training begins."""
        if hasattr(self.model, "peft_config"):
            raise InputError(
                "a peft adapter is no model for others to load: push model = trainer.model.merge_and_unload() by "
                "model.push_to_hub(…) instead (docs/reuse.md)"
            )
        if not self.is_world_process_zero():
            return
        name = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        private = self.args.hub_private_repo if private is None else private
        self.hub_model_id = open_repo(name, token or self.args.hub_token, private)
        self.push_in_progress = None  # which Trainer asks for

    def create_model_card(
        self,
        scores: Mapping[str, tuple] | None = None,
        base_model: str | None = None,
        data: Mapping[str, Mapping] | None = None,
        **kwargs: Any,
    ) -> None:
        """Overridden to write a card that tells of all tasks, `README.md` in the output folder.

        Args:
            scores: {task: (dev score, lower, upper bound)}; by default those of the last evaluation, without bounds.
            base_model: name of the checkpoint that training started from; by default the model's.
            data: {task: {split: rows and fingerprint}}.
            kwargs: of Trainer's card; they have no place in this one.
        """
        if not self.is_world_process_zero():
            return
        tasks = self.model.tasks
        card = model_card(
            tasks,
            self.model.config,
            self.hub_model_id or self.args.hub_model_id,
            base_model or self.model.name_or_path,
            scores or self.last_scores(),
            self.card_settings(),
            self.describe_plan(),
            data,
            {name: describe_metric(task) for name, task in tasks.items()} | {"overall": describe_overall(tasks)},
        )
        Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
        Path(self.args.output_dir, CARD).write_text(card, encoding="utf-8")

    def card_settings(self) -> dict[str, object]:
        """What the card says of the training."""
        settings = {name: getattr(self.args, name) for name in CARD_SETTINGS} | {"rows of a step": self.batch_size}
        smart = {name: task.smart_weight for name, task in self.model.tasks.items() if task.smart_weight}
        if smart:
            settings["smart_weight"] = ", ".join(f"{name} {weight:g}" for name, weight in smart.items())
            settings |= {name: getattr(self.args, name) for name in ("smart_projection", "smart_radius", "smart_steps")}
        for field in ("class_weights", "label_smoothing"):
            values = {name: getattr(task, field) for name, task in self.model.tasks.items()}
            settings |= {f"{field} of {name}": value for name, value in values.items() if value}
        return settings

    def last_scores(self) -> dict[str, tuple]:
        """The scores of the last evaluation, {task: (score, None, None)}, or nothing."""
        for entry in reversed(self.state.log_history):
            if "eval_overall" in entry:
                keys = {name: f"eval_{name}_{task.metric}" for name, task in self.model.tasks.items()}
                return {name: (entry[key], None, None) for name, key in (keys | {"overall": "eval_overall"}).items()}
        return {}

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        *,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> str | None:
        """Overridden to push what others need and no more (`hub.PUBLIC`), with our card.

        Args:
            commit_message: of the commit.
            token: with write access; by default `--hub_token`, or the one of this machine.
            revision: branch; by default `--hub_revision`, or main.
            private: whether a new repository is private; by default `--hub_private_repo`.
            kwargs: of `create_model_card`.

        Returns:
            The commit's address, on the first process.

        Raises:
            InputError: it could not be pushed.
        """
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)  # else it would push by itself
        self.create_model_card(**kwargs)
        if self.is_world_process_zero():
            revision = revision or self.args.hub_revision
            return push_folder(self.args.output_dir, self.hub_model_id, revision, token, commit_message)
