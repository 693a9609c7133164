"""Runs of the training recipe, one after the other, in one group of processes, so that a test pays for one launch:

    accelerate launch --config_file recipes/accelerate/cpu.yaml tests/launched.py RUNS.json

RUNS.json is {output folder: flags of its run}. Each process leaves beside a run's files `rows-RANK.json`: the (task,
row) pairs that its model was given, one list for each micro-batch.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from unittest import mock

import torch

from bert_multitask.data.collate import TaskRows

RECIPE = Path(__file__).parent.parent / "recipes" / "train_multitask.py"


def smooth_noise(embeddings: torch.Tensor) -> torch.Tensor:
    """Noise that is a function of the embeddings, and not 0 where they are: the same for a row on whatever share."""
    return torch.sin(50 * embeddings.detach() + torch.arange(embeddings.shape[-1], device=embeddings.device))


def train(runs: dict[str, list[str]]) -> None:
    """Train each run in this process, which may be one of several.

    SMART's perturbation begins as random noise, which depends on how a batch is cut. It is `smooth_noise` here;
    everything else is what users run.
    """
    main = runpy.run_path(str(RECIPE))["main"]
    read = TaskRows.__getitems__
    for folder, flags in runs.items():
        given = []

        def record(dataset, keys, given=given):
            given.append(keys)
            return read(dataset, keys)

        with (
            mock.patch.object(TaskRows, "__getitems__", record),
            mock.patch.object(torch, "randn_like", smooth_noise),
        ):
            main([*flags, "--output_dir", folder])
        Path(folder, f"rows-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(given))


if __name__ == "__main__":
    train(json.loads(Path(sys.argv[1]).read_text()))
