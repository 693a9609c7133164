"""Runs that began alike → one model with the mean of their weights, a "model soup" (Wortsman et al., 2022)."""

from collections.abc import Sequence

from ..model.errors import InputError
from ..model.modeling import MultitaskBertModel, head_meaning
from .trained_run import TrainedRun

# Fields of the configuration that runs may differ in: how they were trained, not what their weights mean. Of the tasks
# `head_meaning` has to be the same.
FREE = {"transformers_version", "dtype", "tasks"}  # and the dropout of the encoder


def average_weights(runs: Sequence[TrainedRun]) -> MultitaskBertModel:
    """The uniform average of the runs' weights, in fp32, with the configuration of the first; adapters are merged
    first, since the mean of products is no product of means.

    Args:
        runs: that began with the same weights (see `check_same_start`).

    Raises:
        InputError: they did not, or their models differ.
    """
    check_same_start(runs)
    model = runs[0].load_model().merge_adapters().float()
    # In double precision, so that the average of equal weights is these weights.
    sums = {name: weight.double() for name, weight in model.state_dict().items()}
    for run in runs[1:]:
        for name, weight in run.load_model().merge_adapters().state_dict().items():
            sums[name] += weight
    model.load_state_dict({name: (total / len(runs)).float() for name, total in sums.items()})
    return model


def check_same_start(runs: Sequence[TrainedRun]) -> None:
    """Refuse runs whose weights cannot be averaged.

    Raises:
        InputError: the encoders differ, or what the weights of a head mean; the runs started from other
            checkpoints, or drew the first weights of their heads from other seeds; or a folder does not say from what.
    """
    first, *others = [describe_start(run) for run in runs]
    for run, other in zip(runs[1:], others, strict=True):
        for field in sorted(first.keys() | other.keys()):
            if first.get(field) != other.get(field):
                hint = ": train with one --seed, and another --data_seed for other batches" if field == "seed" else ""
                raise InputError(
                    f"{run.name}: {field} is {other.get(field)!r}, and {first.get(field)!r} in {runs[0].name}; "
                    f"only runs that began with the same weights can be averaged{hint}"
                )


def describe_start(run: TrainedRun) -> dict:
    """What must be the same in runs to be averaged."""
    if run.record is None:
        raise InputError(f"{run.name}: no run.json, so nothing says which weights it began with; expected a run folder")
    stored = run.config.to_dict()
    stored |= stored.pop("text_config", {})
    fields = {name: value for name, value in stored.items() if name not in {*FREE, *run.config.dropout_fields}}
    layout = {name: getattr(run.config, name) for name in ("pooling", "pair_encoding")}
    for name, task in run.tasks.items():
        fields |= {f"{name}'s {field}": value for field, value in head_meaning(task, layout).items()}
    return fields | {
        "model_name_or_path": run.record["run"]["model_name_or_path"],
        "seed": run.record["training"]["seed"],
    }
