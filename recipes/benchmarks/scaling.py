"""How speed and memory change with rows, lengths, tasks, depth, width and processes; what the paper's runs take."""

import dataclasses
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, set_seed

from bert_multitask import InputError, MultitaskBertModel, load_rows, load_tokenizer, smart_penalty, tokenise_splits
from bert_multitask.model.configuration import PAIR_ENCODING, MultitaskBertConfig, PerTaskBertConfig
from bert_multitask.model.losses import DIVERGENCES
from bert_multitask.model.tasks import TASKS
from bert_multitask.training.schedule import PlanSampler, count_batches, round_robin
from bert_multitask.training.yaml_file import CONFIGS

from .cost import FEATURES, PASSES, count_work, fit, paper_run
from .memory import resident
from .rig import NAMES

PAPER = CONFIGS / "paper"
BERT_BASE = BertConfig()  # its defaults are bert-base-uncased's
WARM_UP = 2  # steps of a round that are not timed


@dataclass(frozen=True)
class Setting:
    """What is varied. The defaults are MiniLM on batches like the real mix's.

    Args:
        rows: of a step, all processes together.
        length: tokens of a row on average; rows have from half to one and a half of them, evenly. "mix" is the lengths
            of the real mix: the first batches of the paper's round-robin.
        tasks: whose steps take turns.
        layers: of the encoder.
        width: of its hidden states.
        heads: of its attention.
        kind: key of `PASSES`: "train", "smart" or "predict".
        encoder_sharing: "shared" or "per_task".
        processes: that share each step, with one CPU thread each.
        held_out: kept from the fit, to check it.
    """

    rows: int = 32
    length: int | str = 28
    tasks: int = 3
    layers: int = 6
    width: int = 384
    heads: int = 12
    kind: str = "train"
    encoder_sharing: str = "shared"
    processes: int = 1
    held_out: bool = False

    def __post_init__(self):
        for field, choices in (("kind", PASSES), ("encoder_sharing", ("shared", "per_task"))):
            if (value := getattr(self, field)) not in choices:
                raise InputError(f"--settings: {field} is {value!r}; choose one of {', '.join(choices)}")
        if self.length != "mix" and not (isinstance(self.length, int) and self.length >= 2):
            raise InputError(f"--settings: length is {self.length!r}; expected at least 2 tokens, or mix")
        if self.width % self.heads or self.rows < self.processes:
            raise InputError(
                f"--settings: width {self.width} must be a multiple of heads {self.heads}, and rows {self.rows} at "
                f"least processes {self.processes}"
            )

    def describe(self) -> str:
        """What differs from the defaults."""
        defaults = vars(Setting())
        changed = {key: value for key, value in vars(self).items() if value != defaults[key] and key != "held_out"}
        return ", ".join(f"{key} {value}" for key, value in changed.items()) or "the defaults"

    @property
    def config(self) -> MultitaskBertConfig:
        """Of a model of this shape, with bert-base's vocabulary."""
        fields = vars(TASKS["sst"])
        return (MultitaskBertConfig if self.encoder_sharing == "shared" else PerTaskBertConfig)(
            num_hidden_layers=self.layers,
            hidden_size=self.width,
            num_attention_heads=self.heads,
            intermediate_size=4 * self.width,
            tasks=[fields | {"name": f"task{number}"} for number in range(self.tasks)],
        )


def read_settings(path: str) -> list[Setting]:
    """The settings of a YAML file: a list of what differs from `Setting`'s defaults."""
    try:
        settings = [Setting(**fields) for fields in yaml.safe_load(Path(path).read_text(encoding="utf-8"))]
    except (OSError, yaml.YAMLError, TypeError) as error:
        fields = ", ".join(field.name for field in dataclasses.fields(Setting))
        raise InputError(f"--settings {path}: expected a YAML list of {fields}: {error}") from error
    if all(setting.held_out for setting in settings):
        raise InputError(f"--settings {path}: holds out every setting; expected some to fit the constants to")
    return settings


class Mix:
    """The lengths of the rows of `data_dir`, by the tokenizer of `model_name_or_path`."""

    def __init__(self, options):
        tokenizer = load_tokenizer(options.model_name_or_path, BERT_BASE.vocab_size)
        self.lengths = {}
        for name in NAMES:
            rows = load_rows(TASKS[name], options.data_dir, splits=["train"])
            for encoding in PAIR_ENCODING:
                tokens = tokenise_splits(TASKS[name], rows, tokenizer, 512, encoding)["train"]["input_ids"][:]
                separate = encoding == "separate" and TASKS[name].text_pair
                self.lengths[name, encoding] = np.array(
                    [list(map(len, row)) if separate else len(row) for row in tokens]
                )

    def batches(self, rows: int, steps: int) -> list[np.ndarray]:
        """The lengths of the first batches of the paper's plan, of so many rows each."""
        sizes = {name: len(self.lengths[name, "joint"]) for name in NAMES}
        epochs = {name: TASKS[name].epochs for name in NAMES}
        plan = round_robin(count_batches(sizes, epochs, rows, 1.0), 0)[:steps]
        return [
            np.array([self.lengths[name, "joint"][row] for name, row in keys])
            for keys in PlanSampler(plan, sizes, rows, seed=0)
        ]


def draw_batches(setting: Setting, steps: int, mix: Mix) -> list[np.ndarray]:
    """The lengths of the rows of each step."""
    if setting.length == "mix":
        return mix.batches(setting.rows, steps)
    low, high = setting.length // 2, setting.length + setting.length // 2
    return list(np.random.default_rng(0).integers(low, high, size=(steps, setting.rows), endpoint=True))


def measure(setting: Setting, batches: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Take the steps in new processes: their seconds (steps,), and megabytes that are held at most, and sent, by
    the process with most of each."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (setting, batches, folder)
        # A fork begins with all that is imported, and with memory that only the steps add to.
        torch.multiprocessing.start_processes(take_steps, arguments, setting.processes, start_method="fork")
        results = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(setting.processes)]
    return {key: np.max([result[key] for result in results], axis=0) for key in results[0]}


def take_steps(rank: int, setting: Setting, batches: list[np.ndarray], folder: str) -> None:
    """What one process does, and writes to its file in the folder."""
    torch.set_num_threads(1)
    before = resident("VmHWM")
    if setting.processes > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=setting.processes)
    set_seed(rank)
    model, sent = MultitaskBertModel(setting.config), []
    model.train(setting.kind != "predict")
    wrapped = model
    if setting.processes > 1:
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        wrapped.register_comm_hook(sent, count_bytes)
    parameters = [weight for name, weight in model.named_parameters() if ".pooler." not in name]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    seconds = []
    for number, lengths in enumerate(batches):
        batch = make_batch(np.array_split(lengths, setting.processes)[rank], number % setting.tasks)
        start = time.perf_counter()
        if setting.kind == "predict":
            with torch.inference_mode():
                model(**batch)
        else:
            outputs = wrapped(**batch, num_items_in_batch=len(lengths))
            loss = outputs.loss + (penalty(model, batch, outputs.logits) if setting.kind == "smart" else 0)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    result = {
        "seconds": seconds[WARM_UP:],
        "memory": resident("VmHWM") - before,
        "sent": sum(sent) / len(batches) / 1e6,
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    if setting.processes > 1:
        dist.destroy_process_group()


def count_bytes(sent: list[int], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DistributedDataParallel's own all-reduce of a bucket of gradients, with the bytes noted that it has a process
    send."""
    processes = dist.get_world_size()
    sent.append(2 * (processes - 1) / processes * bucket.buffer().nbytes)
    return allreduce_hook(None, bucket)


def make_batch(lengths: np.ndarray, task: int) -> dict:
    """Rows of random words."""
    rows = [torch.randint(1000, BERT_BASE.vocab_size, (length,)) for length in lengths]
    return {
        "task": f"task{task}",
        "input_ids": pad_sequence(rows, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": torch.randint(5, (len(rows),)),
    }


def penalty(model: MultitaskBertModel, batch: Mapping, logits: torch.Tensor) -> torch.Tensor:
    """SMART's, as training adds it to the loss of the clean predictions."""
    task, mask = batch["task"], batch["attention_mask"]
    embeddings = model.encoder(task).get_input_embeddings()(batch["input_ids"])

    def predict(embeddings: torch.Tensor) -> torch.Tensor:
        return model(task, attention_mask=mask, inputs_embeds=embeddings).logits

    return smart_penalty(predict, embeddings, mask, logits, DIVERGENCES["symmetric_kl"])


def scale(options) -> dict:
    """Measure the settings, fit the constants to those that are not held out, and predict the paper's runs."""
    settings, mix = read_settings(options.settings), Mix(options)
    batches = [draw_batches(setting, WARM_UP + options.steps, mix) for setting in settings]
    rounds = [list(map(measure, settings, batches)) for _ in range(options.rounds)]
    results = list(zip(*rounds, strict=True))  # by setting
    # Other programs on the machine only add to a step's time, so of each step the least counts.
    seconds = np.array([np.min([result["seconds"] for result in found], axis=0).mean() for found in results])
    work = np.array([mean_work(setting, part) for setting, part in zip(settings, batches, strict=True)])
    held_out = np.array([setting.held_out for setting in settings])
    constants = fit(work[~held_out], seconds[~held_out])
    ratios = work @ constants / seconds
    columns = {
        "setting": [setting.describe() for setting in settings],
        "rows/s": [setting.rows / took for setting, took in zip(settings, seconds, strict=True)],
        "memory, MB": [float(found[0]["memory"]) for found in results],
        "sent, MB": [float(found[0]["sent"]) for found in results],
        "predicted / measured": ratios,
        "held out": [setting.held_out for setting in settings],
    }
    return {
        "settings": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        "constants": [{"seconds": value, "of": FEATURES[key]} for key, value in zip(FEATURES, constants, strict=True)],
        "largest error of a setting in the fit": np.abs(ratios[~held_out] - 1).max(),
        "largest error of a setting held out": np.abs(ratios[held_out] - 1).max(initial=0),
    } | paper_runs(options, mix, constants)


def paper_runs(options, mix: Mix, constants: np.ndarray) -> dict:
    """Hours of each of the paper's systems, with the model and with bert-base, at `rows_per_second` of the model."""
    model = MultitaskBertConfig.from_pretrained(options.model_name_or_path)
    one_thread = Setting.rows / (mean_work(Setting(), mix.batches(Setting.rows, 200), model) @ constants)
    speed = options.rows_per_second or one_thread
    constants = constants * one_thread / speed
    files = sorted(PAPER.glob("*.yaml"))
    return {
        "rows/s of the real mix, one thread, predicted": one_thread,
        "rows/s of the runs below": speed,
    } | {
        f"runs of {name}": [paper_run(path, mix.lengths, config, constants) for path in files]
        for name, config in ((options.model_name_or_path, model), ("bert-base", BERT_BASE))
    }


def mean_work(setting: Setting, batches: list[np.ndarray], config: BertConfig | None = None) -> np.ndarray:
    """Of a timed step, (features,)."""
    encoders = setting.tasks if setting.encoder_sharing == "per_task" else 1
    return np.mean(
        [
            count_work(lengths, config or setting.config, setting.kind, setting.processes, encoders)
            for lengths in batches[WARM_UP:]
        ],
        axis=0,
    )
