"""Model soups (Wortsman et al., 2022): the mean of the weights of runs that began with the same weights."""

from collections.abc import Sequence

from ..model.errors import InputError
from ..model.modeling import MultitaskBertModel, head_meaning
from .trained_run import TrainedRun

# Fields of the configuration that runs may differ in: how they were trained, not what their weights mean. Of the tasks
# `head_meaning` has to be the same.
FREE = {"transformers_version", "dtype", "tasks"}  # and the dropout of the encoder


def average_weights(runs: Sequence[TrainedRun]) -> MultitaskBertModel:
    """A model with the mean of the runs' weights, in fp32, and the configuration of the first run.

    Adapters are merged first: the mean of products is not the product of means.

    Raises:
        InputError: the runs did not begin with the same weights, or their models differ (see `check_same_start`).
    """
    check_same_start(runs)
    model = runs[0].load_model().merge_adapters().float()
    # In double precision, so that the mean of equal weights is exact.
    sums = {name: weight.double() for name, weight in model.state_dict().items()}
    for run in runs[1:]:
        for name, weight in run.load_model().merge_adapters().state_dict().items():
            sums[name] += weight
    model.load_state_dict({name: (total / len(runs)).float() for name, total in sums.items()})
    return model


def check_same_start(runs: Sequence[TrainedRun]) -> None:
    """Raises InputError if the runs' encoders or the meanings of their heads' weights differ, if they started from
    other checkpoints or seeds, or if a folder does not say from which."""
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
    """What must be the same in runs whose weights are averaged."""
    if (record := run.records.run) is None:
        raise InputError(f"{run.name}: no run.json, so nothing says which weights it began with; expected a run folder")
    stored = run.config.to_dict()
    stored |= stored.pop("text_config", {})
    fields = {name: value for name, value in stored.items() if name not in {*FREE, *run.config.dropout_fields}}
    layout = {name: getattr(run.config, name) for name in ("pooling", "pair_encoding")}
    for name, task in run.tasks.items():
        fields |= {f"{name}'s {field}": value for field, value in head_meaning(task, layout).items()}
    start = {"model_name_or_path": record["run"]["model_name_or_path"], "seed": record["training"]["seed"]}
    return fields | start
