"""The files of a Space, a page of the Hub, that shows the demo of a run."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import SpaceCardData
from packaging.requirements import Requirement

from ..model.errors import explained
from ..training.hub import commit_files, public_files
from .trained_run import TrainedRun

GRADIO = "6.31.0"  # the version that the tests use
MODEL = "run"  # folder of the Space with the files of a run that is not on the Hub
PACKAGE = Path(__file__).parent.parent
APP = '''"""The page of a model of several tasks; the package beside this file makes it."""

from bert_multitask.inference.demo_page import build_page, launch_options

build_page({runs!r}).launch(**launch_options())
'''
CARD = """---
{metadata}
---

# {title}

Try a model of the tasks {tasks}: {model}. The page is made by `bert_multitask`, whose code lies in this Space.
"""


def space_files(name: str, title: str) -> dict[str, bytes | Path]:
    """The files of a Space: the page, its requirements, its card and this package's code; for a run folder also the
    files that would be pushed to the Hub, so that the Space needs no other repository.

    Args:
        name: run folder or Hub id.
        title: of the Space.

    Returns:
        {path in the Space: content, or the file that has it}.

    Raises:
        InputError: there is no such run, or one of its files is a link that leaves the folder.
    """
    run, is_local = TrainedRun.open(name), Path(name).is_dir()
    settings = {"sdk": "gradio", "sdk_version": GRADIO, "python_version": "3.11", "app_file": "app.py"}
    metadata = SpaceCardData(title=title, **settings, models=None if is_local else [name])
    model = "its weights lie in this Space" if is_local else f"[{name}](https://huggingface.co/{name})"
    card = CARD.format(metadata=metadata.to_yaml(), title=title, tasks=", ".join(run.tasks), model=model)
    adapters = ["peft"] if run.config.lora else []
    files: dict[str, bytes | Path] = {
        "README.md": card.encode(),
        "app.py": APP.format(runs={title: MODEL if is_local else name}).encode(),
        "requirements.txt": "".join(f"{line}\n" for line in [*requirements(), *adapters]).encode(),
    }
    files |= {f"{PACKAGE.name}/{file.relative_to(PACKAGE).as_posix()}": file for file in sorted(PACKAGE.rglob("*.py"))}
    if is_local:
        files |= {f"{MODEL}/{file.name}": file for file in public_files(Path(name)) if file.suffix != ".py"}
    return files


def requirements() -> list[str]:
    """The requirements of this package, without its extras; a Space has gradio already."""
    what = f"{PACKAGE.name} is not installed, so its requirements are unknown"
    with explained(what, importlib.metadata.PackageNotFoundError, hint="pip install ."):
        lines = importlib.metadata.requires(PACKAGE.name) or []
    return [line for line in lines if Requirement(line).marker is None]


def write_space(files: Mapping[str, bytes | Path], folder: Path) -> None:
    """Write the files of a Space in a folder."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def push_space(files: Mapping[str, bytes | Path], repo_id: str) -> str:
    """Upload the files of `space_files` to a Space that exists, in one commit; returns its address.

    Raises:
        InputError: the upload failed, and nothing was committed.
    """
    with explained(f"--space {repo_id}: nothing was uploaded", hint="try again"):
        return commit_files(files, repo_id, "Push a demo", repo_type="space")
