"""Which values the fields of `TrainingArguments` may have here, and which packages and devices they need.

docs/trainer.md lists every field. A field is refused when it would be ignored, or when it could not do what it says.
"""

import os
import shutil
from collections.abc import Mapping

import torch
from accelerate.utils import DynamoBackend
from transformers import TrainingArguments
from transformers.integrations import integration_utils, is_deepspeed_available
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..model.errors import InputError

LIGER = "Liger has no kernels for BERT"
HALF_EVALUATION = "it would turn the model itself, and what is saved of it, into half precision; see --bf16 and --fp16"

# Fields of TrainingArguments that can have one value only -> that value, and why.
FIXED: dict[str, tuple[object, str]] = {
    "num_train_epochs": (1, "epochs belong to tasks: Task(epochs=3), or --task_epochs"),
    "auto_find_batch_size": (
        False,
        "the plan counts on the rows of a step; where memory runs out, lower --per_device_train_batch_size and raise "
        "--gradient_accumulation_steps as much",
    ),
    "train_sampling_strategy": ("random", "the plan orders the rows, and predictions keep the files' order"),
    "length_column_name": ("length", "rows are not grouped by length"),
    "dataloader_drop_last": (False, "no row is lost"),
    "dataloader_in_order": (True, "batches come in the order of the plan"),
    "ignore_data_skip": (False, "a resumed run goes on in its plan"),
    "remove_unused_columns": (False, "the collator picks the columns"),
    "label_names": (None, "a row's label is in the column labels"),
    "label_smoothing_factor": (0, "it is a setting of each task: label_smoothing in the task's fields"),
    "neftune_noise_alpha": (None, "its noise does not fit packed word embeddings; see --smart_weight"),
    "use_liger_kernel": (False, LIGER),
    "liger_kernel_config": (None, LIGER),
    "use_cache": (False, "an encoder has no cache"),
    "fp16_full_eval": (False, HALF_EVALUATION),
    "bf16_full_eval": (False, HALF_EVALUATION),
    "logging_nan_inf_filter": (False, "a loss that is not a finite number stops the run"),
    "prediction_loss_only": (False, "predictions are what is scored"),
    "eval_do_concat_batches": (True, "predictions are one table"),
    "eval_use_gather_object": (False, "predictions are tensors"),
    "batch_eval_metrics": (False, "a task is scored on all of its rows together"),
    "enable_jit_checkpoint": (False, "it would replace the recipes' own handler of SIGTERM; see --save_steps"),
    "hub_strategy": ("end", "a push in mid-training would carry what belongs to this machine, and no code"),
    "hub_always_push": (False, "a run is pushed once, when it is finished"),
    "ddp_find_unused_parameters": (True, "the heads of the other tasks are idle in a step"),
    "ddp_static_graph": (None, "the parts of the model that a step uses depend on its task"),
    "parallelism_config": (None, "processes share a batch's rows, not its tokens or the model's layers"),
}
# Fields of AcceleratorConfig that would deal out rows in another way -> the value that does not.
DEALING = {"split_batches": False, "dispatch_batches": None, "even_batches": True, "use_seedable_sampler": True}


POSITIVE = ("above 0", lambda value: 0 < value < float("inf"))
NOT_NEGATIVE = ("0 or more", lambda value: 0 <= value < float("inf"))
COUNT = ("at least 1", lambda value: 1 <= value < float("inf"))
SHARE = ("a share in (0, 1]", lambda value: 0 < value <= 1)
BELOW_ONE = ("from 0 to below 1", lambda value: 0 <= value < 1)
SEED = ("from 0 to 2**32 - 1", lambda value: 0 <= value < 2**32)
# Number fields -> what is expected, and the test. None is no value, and passes.
RANGES = {
    "budget": SHARE,
    "sampling_temperature": POSITIVE,
    "max_steps": ("at least 1, or -1 for the whole plan", lambda value: value == -1 or value >= 1),
    "per_device_train_batch_size": COUNT,
    "per_device_eval_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "eval_accumulation_steps": COUNT,
    "logging_steps": ("above 0, or -1 for about twenty entries", lambda value: value == -1 or value > 0),
    "learning_rate": NOT_NEGATIVE,
    "head_learning_rate": NOT_NEGATIVE,
    "layer_decay": SHARE,
    "weight_decay": NOT_NEGATIVE,
    "max_grad_norm": ("0 (no clipping) or more", NOT_NEGATIVE[1]),
    "adam_epsilon": POSITIVE,
    "adam_beta1": BELOW_ONE,
    "adam_beta2": BELOW_ONE,
    "seed": SEED,
    "data_seed": SEED,
    "save_total_limit": COUNT,
    "gradient_cosine_steps": COUNT,
    "early_stopping_patience": COUNT,
    "early_stopping_threshold": NOT_NEGATIVE,
    "smart_radius": POSITIVE,
    "smart_step_size": POSITIVE,
    "smart_noise_std": POSITIVE,
    "smart_steps": COUNT,
    "bregman_momentum": BELOW_ONE,
    "ema_decay": ("between 0 and 1", lambda value: 0 < value < 1),
    "ema_start": BELOW_ONE,
}
# --report_to NAME -> what `is_…_available` calls it, and the packages to install, where these are not NAME.
REPORTERS = {
    "azure_ml": ("azureml", "azureml-core"),
    "comet_ml": ("comet", "comet-ml"),
    "dagshub": ("dagshub", "dagshub mlflow"),
    "flyte": ("flytekit", "flytekit"),
}


def check_values(args: TrainingArguments, choices: Mapping[str, object]) -> None:
    """Check the values of flags.

    Args:
        choices: {field: the words it may be}.

    Raises:
        InputError: a value is out of range; the message names the flag, its value and what is expected.
    """
    for name, words in choices.items():
        if getattr(args, name) not in words:
            raise InputError(f"--{name} is {getattr(args, name)!r}; choose one of {', '.join(sorted(words))}")
    for name, (allowed, why) in FIXED.items():
        if getattr(args, name) != allowed:
            raise InputError(f"--{name} is {getattr(args, name)!r}; only {allowed!r} works here: {why}")
    for name, (expected, is_fine) in RANGES.items():
        if (value := getattr(args, name)) is not None and not is_fine(value):
            raise InputError(f"--{name} is {value}; expected {expected}")
    if args.output_dir is None:
        raise InputError("--output_dir is missing: name the folder to write the run to")
    if args.early_stopping_patience is None and args.early_stopping_threshold:
        raise InputError("--early_stopping_threshold does nothing without --early_stopping_patience")
    if args.ema_decay is None and args.ema_start != type(args).ema_start:
        raise InputError("--ema_start does nothing without --ema_decay")
    if args.early_stopping_patience and (args.eval_strategy != "steps" or not args.metric_for_best_model):
        raise InputError("--early_stopping_patience needs --eval_strategy steps and a --metric_for_best_model")


def check_devices(args: TrainingArguments) -> None:
    """Raises InputError if this machine has no package or device for a flag; called before Transformers asks for
    them."""
    if args.deepspeed and not is_deepspeed_available():
        raise InputError("--deepspeed needs the package deepspeed: pip install deepspeed")
    if args.fp16 and args.use_cpu:
        raise InputError("--fp16 needs a GPU; leave it out, or use --bf16, which a CPU can do")


def check_saving(args: TrainingArguments) -> None:
    """Raises InputError if the best checkpoint is wanted, and none is saved where the model is evaluated."""
    if args.load_best_model_at_end and args.save_strategy not in (args.eval_strategy, "best"):
        raise InputError(
            f"--save_strategy is {args.save_strategy!r} and --eval_strategy {args.eval_strategy!r}, so that the best "
            "checkpoint may not be saved; leave out --save_strategy, or set --load_best_model_at_end false"
        )


def check_resolved(args: TrainingArguments) -> None:
    """Raises InputError for what shows only when Transformers has resolved the arguments: integrations, Accelerate's
    configuration."""
    for name in args.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(f"--report_to is {name!r}; choose one of none, all, {', '.join(INTEGRATION_TO_CALLBACK)}")
        function, packages = REPORTERS.get(name, (name, name))
        if not getattr(integration_utils, f"is_{function}_available")():
            install = "a Kubeflow TrainJob to run in" if name == "kubeflow" else f"a package: pip install {packages}"
            raise InputError(f"--report_to {name} needs {install}; or choose another, or none")
    for name, allowed in DEALING.items():
        if (value := getattr(args.accelerator_config, name)) != allowed:
            raise InputError(f"--accelerator_config has {name}: {value}; only {allowed} works here: no row is lost")
    backends = [backend.lower() for backend in DynamoBackend.list()]
    if args.torch_compile and args.torch_compile_backend.lower() not in backends:
        raise InputError(
            f"--torch_compile_backend is {args.torch_compile_backend!r}; choose one of {', '.join(backends)}"
        )
    modes = torch._inductor.list_mode_options()
    if args.torch_compile and args.torch_compile_mode not in (None, *modes):
        raise InputError(f"--torch_compile_mode is {args.torch_compile_mode!r}; choose one of {', '.join(modes)}")
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if args.torch_compile and args.torch_compile_backend == "inductor" and not any(map(shutil.which, compilers)):
        raise InputError("--torch_compile needs a C++ compiler: install g++, or name one in the variable CXX")
    if args.debug and args.debug != ["underflow_overflow"]:
        raise InputError("--debug takes underflow_overflow only")
    if args.optim_target_modules is not None and not args.optim.startswith(("galore", "apollo")):
        raise InputError(
            f"--optim_target_modules does nothing with --optim {args.optim.value}; it is for galore and apollo"
        )
    if args.fsdp and args.world_size == 1:
        raise InputError("--fsdp works with several processes only: accelerate launch --num_processes N")
