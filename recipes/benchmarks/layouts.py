"""The layouts of several tasks on one checkpoint: one encoder, one with an adapter for each task, one encoder each."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from bert_multitask import MultitaskBertModel

from .rig import NAMES, Rig, alternate

LAYOUTS = {
    "shared": {},
    "shared, LoRA": {"peft_config": {"r": 16, "lora_alpha": 32}},
    "adapters": {"encoder_sharing": "adapters", "peft_config": {"r": 16, "lora_alpha": 32}},
    "per_task": {"encoder_sharing": "per_task"},
}


def layouts(options) -> dict:
    """Parameters, trained ones, MB on disk, and the CPU time of a step as a multiple of the shared encoder's."""
    rig = Rig(options)
    models = {
        name: MultitaskBertModel.from_pretrained(options.model_name_or_path, tasks=list(NAMES), **settings)
        for name, settings in LAYOUTS.items()
    }

    def timed(model: MultitaskBertModel) -> Callable[[int], float]:
        """The CPU seconds of a round's steps, by the seed of their plan."""

        def seconds(seed: int) -> float:
            rig.model = model
            return rig.train(seed, time.process_time).seconds

        return seconds

    rounds = list(alternate(options.rounds, *map(timed, models.values())))
    ratios = zip(*([side / sides[0] for side in sides] for sides in rounds), strict=True)
    rows = [
        {"layout": name, **count(model), "step": median(ratio)}
        for (name, model), ratio in zip(models.items(), ratios, strict=True)
    ]
    return {"layouts": rows}


def count(model: MultitaskBertModel) -> dict[str, float]:
    """Millions of parameters of a model, and of those that are trained, and the MB of its weights on disk."""
    weights = list(model.parameters())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    return {"million": sum(weight.numel() for weight in weights) / 1e6, "trained": trained / 1e6, "MB": size / 1e6}
