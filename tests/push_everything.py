"""Run as a script, with a hub's address and token in the environment: every way to push, one line of JSON a way.

python push_everything.py CONFIG RUN OTHER_RUN
"""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path

RECIPES = Path(__file__).parent.parent / "recipes"


def recipe(name: str, *argv: str) -> dict:
    """Run a recipe in this process: its exit code and what it printed."""
    sys.argv = [name, *argv]
    printed, code = io.StringIO(), 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            runpy.run_path(str(RECIPES / name), run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    return {"code": code, "printed": printed.getvalue()}


def main(config: str, run: str, other: str) -> None:
    from bert_multitask import MultitaskBertModel

    train = ["train_multitask.py", config, "--max_steps", "2", "--push_to_hub"]
    results = {
        "refused": recipe(*train, "--output_dir", run, "--hub_model_id", "me/run", "--hub_token", "hf_wrong"),
        "begun": Path(run).exists(),
        "trained": recipe(*train, "--output_dir", run, "--hub_model_id", "me/run"),
        "branch": recipe("push_to_hub.py", run, "--hub_model_id", "me/run", "--hub_revision", "second"),
        "private": recipe("push_to_hub.py", run, "--hub_model_id", "me/secret", "--hub_private_repo"),
        "broken": recipe(*train, "--output_dir", other, "--hub_model_id", "me/broken"),
        "unfinished": recipe("push_to_hub.py", str(Path(config).parent), "--hub_model_id", "me/x"),
    }
    MultitaskBertModel.from_pretrained("me/run", revision="second").push_to_hub("me/alone")
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
