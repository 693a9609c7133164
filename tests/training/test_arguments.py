"""The command line: YAML below, flags above, and every mistake named."""

import dataclasses
import json

import pytest
import torch
import yaml
from accelerate import PartialState
from transformers.trainer_utils import IntervalStrategy

from bert_multitask.commands.command_line import OTHERS, RecipeParser
from bert_multitask.model.errors import InputError
from bert_multitask.model.tasks import TASKS
from bert_multitask.training import arguments
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments, check_launch


def parse(tmp_path, yaml: str, *flags: str):
    config = tmp_path / "config.yaml"
    config.write_text(yaml)
    parser = RecipeParser((RunArguments, MultitaskTrainingArguments), tmp_path / "default.yaml", "a test")
    return parser.parse([str(config), "--output_dir", str(tmp_path / "run"), *flags])


def test_defaults_are_the_papers_but_for_the_schedule_of_the_rate(tmp_path):
    run, args, _ = parse(tmp_path, "")
    assert run.tasks == ["sst", "quora", "sts"] and run.model_name_or_path == "google-bert/bert-base-uncased"
    assert [task.epochs for task in run.load_tasks()] == [10, 3, 10]
    assert (args.per_device_train_batch_size, args.learning_rate) == (32, 1e-5)
    assert (args.lr_scheduler_type, args.warmup_steps) == ("linear", 0)
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay) == (0.9, 0.999, 0)
    assert args.schedule == "round_robin" and args.metric_for_best_model == "eval_overall" and args.do_predict


def test_flags_override_yaml(tmp_path):
    yaml = "learning_rate: 5e-5\ntasks: [sst, sts]\nbf16: true\ntask_epochs: {sst: 2}\nseed: 3\n"
    run, args, path = parse(tmp_path, yaml, "--learning_rate", "1e-3", "--tasks", "sst", "--task_epochs", '{"sst": 4}')
    assert args.learning_rate == 1e-3 and args.bf16 and args.seed == 3 and path.name == "config.yaml"
    assert [(task.name, task.epochs) for task in run.load_tasks()] == [("sst", 4)]


def test_what_was_given_makes_the_same_arguments_again(tmp_path):
    nli = {"name": "nli", "kind": "classification", "label_names": ["a", "b"], "files": {"train": "t", "dev": "d"}}
    config, again = tmp_path / "config.yaml", tmp_path / "again.yaml"
    fields = {"tasks": ["sst", nli], "learning_rate": "5e-5", "bf16": True, "eval_strategy": False}
    config.write_text(yaml.safe_dump(fields))
    typed = ["--head_dropout", '{"nli": 0.2}', "--output_dir", "out", "--no_do_predict"]
    parser = RecipeParser((RunArguments, MultitaskTrainingArguments), config, "a test")
    given = parser.given(typed)
    assert given == fields | {
        "learning_rate": 5e-5,
        "eval_strategy": "no",
        "head_dropout": {"nli": 0.2},
        "output_dir": "out",
        "do_predict": False,
    }
    again.write_text(yaml.safe_dump(given))
    one, other = parser.parse(typed), parser.parse([str(again)])
    assert one[0].load_tasks() == other[0].load_tasks() and one[1].to_dict() == other[1].to_dict()


def test_the_default_config_is_used_without_one(tmp_path):
    (tmp_path / "default.yaml").write_text("seed: 9\n")
    parser = RecipeParser((RunArguments, MultitaskTrainingArguments), tmp_path / "default.yaml", "a test")
    assert parser.parse(["--output_dir", str(tmp_path)])[1].seed == 9


def test_dropout_for_all_tasks_or_by_task(tmp_path):
    def dropouts(*flags):
        return [task.dropout for task in parse(tmp_path, "", *flags)[0].load_tasks()]

    assert dropouts() == [0.3, 0.3, 0.3]
    assert dropouts("--head_dropout", "0.1") == [0.1, 0.1, 0.1]
    assert dropouts("--head_dropout", '{"sst": 0.2, "sts": 0}') == [0.2, 0.3, 0]


def test_smart_for_all_tasks_or_by_task(tmp_path):
    run, args, _ = parse(tmp_path, "smart_weight: {sst: 1.0, sts: 2}\nsmart_radius: 1e-3", "--bregman_weight", "0.5")
    assert {task.name: task.smart_weight for task in run.load_tasks()} == {"sst": 1.0, "quora": 0.0, "sts": 2}
    assert {task.bregman_weight for task in run.load_tasks()} == {0.5}
    assert args.smart_radius == 1e-3 and args.smart_projection == "ball" and not args.smart_share_dropout
    run, args, _ = parse(tmp_path, "")
    assert {task.smart_weight for task in run.load_tasks()} == {0.0}, "off unless asked for"
    assert (args.smart_radius, args.smart_step_size, args.smart_noise_std, args.smart_steps) == (1e-5, 1e-3, 1e-5, 1)


def test_class_weights_for_all_tasks_or_by_task(tmp_path):
    def weights(yaml, *flags):
        tasks = parse(tmp_path, yaml, "--tasks", "sst", "quora", *flags)[0].load_tasks()
        return [task.class_weights for task in tasks]

    by_name = {"different": 1.0, "paraphrase": 3.0}
    assert weights("") == [None, None]
    assert weights("", "--class_weights", "balanced") == weights("class_weights: balanced") == ["balanced"] * 2
    assert weights("class_weights: {quora: {paraphrase: 3, different: 1}}") == [None, by_name]
    both = '{"sst": "balanced", "quora": {"different": 1, "paraphrase": 3}}'
    assert weights("", "--class_weights", both) == ["balanced", by_name]


@pytest.mark.parametrize(
    ("flag", "value", "without"),
    [("class_weights", "balanced", ["score"]), ("label_smoothing", 0.1, ["score"]), ("distill_from", "x", ["tags"])],
)
def test_one_value_is_for_the_tasks_that_can_have_it(caplog, propagated_logs, flag, value, without):
    """A line names the others; one that is named is refused, and so are all of them."""
    names = {"label_names": ["O", "B-X"]}
    kinds = {"yes": ("binary", names), "score": ("regression", {}), "tags": ("token_classification", names)}
    tasks = [json.dumps({"name": name, "kind": kind} | rest) for name, (kind, rest) in kinds.items()]
    tasks = [task for task in tasks if flag == "distill_from" or "tags" not in task]
    type(arguments.logger).warning_once.cache_clear()
    found = {task.name: getattr(task, flag) for task in RunArguments(tasks=tasks, **{flag: value}).load_tasks()}
    assert {name for name, given in found.items() if not given} == set(without)
    assert {given for given in found.values() if given} == {value}
    grouped = [json.dumps(json.loads(task) | {"group": "all", "word_by_word": True}) for task in tasks]
    again = {
        task.name: getattr(task, flag) for task in RunArguments(tasks=grouped, **{flag: {"all": value}}).load_tasks()
    }
    assert again == found
    (line,) = [record.getMessage() for record in caplog.records if flag in record.getMessage()]
    assert f"--{flag} is not for {without[0]}: a task of kind '{kinds[without[0]][0]}' " in line
    for wrong in ({without[0]: value}, value):
        alone = [task for task in tasks if without[0] in task]
        with pytest.raises(InputError, match=f"task '{without[0]}': {flag} is .*; leave {flag} out"):
            RunArguments(tasks=tasks if wrong != value else alone, **{flag: wrong}).load_tasks()


def test_label_smoothing_for_all_tasks_or_by_task(tmp_path):
    def smoothing(*flags):
        tasks = parse(tmp_path, "", "--tasks", "sst", "quora", *flags)[0].load_tasks()
        return [task.label_smoothing for task in tasks]

    assert smoothing() == [0, 0]
    assert smoothing("--label_smoothing", "0.1") == [0.1, 0.1]
    assert smoothing("--label_smoothing", '{"quora": 0.2}') == [0, 0.2]


def test_a_task_written_in_the_yaml(tmp_path):
    yaml = "tasks: [sst, {name: nli, kind: classification, label_names: [a, b, c], text_pair: other}]\n"
    run, *_ = parse(tmp_path, yaml)
    assert [task.name for task in run.load_tasks()] == ["sst", "nli"]


def test_resume_without_a_value_means_the_last_checkpoint(tmp_path):
    assert parse(tmp_path, "")[1].resume_from_checkpoint is None
    assert parse(tmp_path, "", "--resume_from_checkpoint")[1].resume_from_checkpoint == "last"
    assert parse(tmp_path, "", "--resume_from_checkpoint", "X")[1].resume_from_checkpoint == "X"


def test_warmup_is_not_ignored_by_a_constant_rate(tmp_path):
    flags = ["--lr_scheduler_type", "constant", "--warmup_steps", "0.1"]
    assert parse(tmp_path, "", *flags)[1].lr_scheduler_type == "constant_with_warmup"


def test_idle_cores_are_pointed_out(tmp_path, caplog, monkeypatch, propagated_logs):
    """`accelerate launch` gives a process one CPU thread unless told otherwise."""
    parse(tmp_path, "", "--use_cpu")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(64), raising=False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    check_launch()
    assert not caplog.text
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    check_launch()
    assert "each process uses one of 64 CPU cores" in caplog.text and "--num_cpu_threads_per_process" in caplog.text


def test_a_process_takes_one_gpu(tmp_path, caplog, monkeypatch, propagated_logs):
    """Of several, Trainer would make DataParallel's: more rows a step, and batches it cannot cut."""
    args = parse(tmp_path, "")[1]
    args._n_gpu = 4  # as on a machine with four
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 4)
    check_launch()
    assert args.n_gpu == 1 and args.train_batch_size == args.per_device_train_batch_size
    assert "only one of 4 GPUs is used: `accelerate launch --num_processes N`" in caplog.text


def test_processes_that_are_no_group_are_refused(tmp_path, monkeypatch):
    """As `accelerate launch --cpu --num_processes 2` leaves them: one process, and an address to meet at."""
    parse(tmp_path, "")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(InputError, match="this one is alone"):
        check_launch()


def test_tasks_can_be_chosen_from_a_configuration_with_settings_for_more(tmp_path):
    run, *_ = parse(tmp_path, "task_epochs: {sst: 2, quora: 1}\n", "--tasks", "quora", "cfimdb")
    assert [(task.name, task.epochs) for task in run.load_tasks()] == [("quora", 1), ("cfimdb", 10)]


def test_help_is_short_at_the_top(tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(tmp_path, "", "--help")
    top = capsys.readouterr().out[:300]
    assert "[CONFIG.yaml] [--flag value ...]\n\na test\n" in top


def test_an_output_folder_is_needed():
    with pytest.raises(InputError, match="--output_dir is missing"):
        MultitaskTrainingArguments()


def test_saving_follows_evaluation(tmp_path):
    args = parse(tmp_path, "", "--eval_steps", "8")[1]
    assert args.save_steps == args.eval_steps == 8
    for strategy, saves in {"steps": "steps", "epoch": "epoch", "no": "steps"}.items():
        assert parse(tmp_path, "", "--eval_strategy", strategy)[1].save_strategy == saves
        assert (
            MultitaskTrainingArguments(str(tmp_path), eval_strategy=IntervalStrategy(strategy)).save_strategy == saves
        )
    assert parse(tmp_path, "", "--eval_strategy", "epoch", "--save_strategy", "best")[1].save_strategy == "best"


def test_without_evaluation_there_is_no_best_model(tmp_path):
    assert not parse(tmp_path, "", "--eval_strategy", "no")[1].load_best_model_at_end
    assert parse(tmp_path, "eval_strategy: no")[1].eval_strategy == "no"


def test_names_of_other_programs_lead_to_flags(tmp_path):
    parser = RecipeParser((RunArguments, MultitaskTrainingArguments), tmp_path / "default.yaml", "a test")
    known = {action.dest for action in parser._actions}
    assert set(OTHERS.values()) <= known and known.isdisjoint(OTHERS)


def test_tensorboard_is_used_where_installed(tmp_path):
    assert parse(tmp_path, "")[1].report_to == ["tensorboard"]
    assert parse(tmp_path, "", "--report_to", "none")[1].report_to == []


@pytest.mark.parametrize(
    ("yaml", "flags", "message"),
    [
        ("learnin_rate: 1", [], r"config.yaml: unknown field 'learnin_rate', did you mean --learning_rate\?"),
        ("", ["--learnin_rate", "1"], r"unknown flag --learnin_rate, did you mean --learning_rate\?"),
        ("", ["--evaluation_strategy=no"], "--evaluation_strategy=no, did you mean --eval_strategy"),
        ("", ["--lr", "1e-5"], r"unknown flag --lr, did you mean --learning_rate\?"),
        ("batch_size: 8", [], r"unknown field 'batch_size', did you mean --per_device_train_batch_size\?"),
        (
            "tasks: [{name: mood, kind: binary}]",
            ["--tasks", "x"],
            "unknown task 'x'; choose from mood, sst, quora",
        ),
        ("tasks: [{name: m, labels: [{name: a, kind: binary}]}]", ["--tasks", "x"], "task 'x'; choose from m, a, sst"),
        ("", ["--learning_rate", "fast"], "--learning_rate.*invalid float value: 'fast'"),
        ("learning_rate: fast", [], "--learning_rate.*invalid float value: 'fast'"),
        ("- a\n- b", [], "field: value"),
        ("a: [", [], "config.yaml: not a YAML file"),
        ("", ["--schedule", "zigzag"], "--schedule.*invalid choice: 'zigzag'"),
        ("", ["--budget", "0"], r"--budget is 0.0; expected a share in \(0, 1\]"),
        ("", ["--num_train_epochs", "3"], r"Task\(epochs=3\), or --task_epochs"),
        ("", ["--train_sampling_strategy", "group_by_length"], "predictions keep the files' order"),
        ("", ["--dataloader_drop_last"], "--dataloader_drop_last is True; only False works here"),
        ("", ["--label_smoothing_factor", "0.1"], "--label_smoothing_factor is 0.1"),
        ("", ["--max_steps", "0"], "--max_steps is 0; expected at least 1"),
        ("", ["--per_device_train_batch_size", "0"], "--per_device_train_batch_size is 0"),
        ("", ["--gradient_accumulation_steps", "0"], "--gradient_accumulation_steps is 0"),
        ("", ["--learning_rate", "-1"], "--learning_rate is -1"),
        ("", ["--seed", "-1"], "--seed is -1"),
        ("", ["--adam_beta1", "2"], "--adam_beta1 is 2"),
        ("", ["--task_epochs", "3"], '--task_epochs is 3; expected JSON such as {"sst": 3}'),
        ("", ["--class_weights", "3"], "--class_weights is 3; expected balanced, or JSON"),
        ("", ["--class_weights", "even"], "--class_weights is 'even'"),
        ("", ["--label_smoothing", "[0.1]"], r"--label_smoothing is \[0.1\]; expected"),
        ("", ["--head_dropout", "[0.1]"], r"--head_dropout is \[0.1\]; expected"),
        ("", ["other.yaml"], "other.yaml .a configuration file comes first"),
        ("1: 2", [], "unknown field 1"),
        ("seed: 2020-01-01", [], "--seed.*invalid int value: '2020-01-01'"),
        ("seed: 1\nseed: 2", [], "config.yaml: .*'seed' is given twice"),
        ("", ["--task_epochs", "[" * 100_000], "--task_epochs is .*not JSON"),
        ("", ["--task_epochs", "sst=3"], "--task_epochs is 'sst=3', which is not JSON"),
        ("", ["--class_weights", "balance"], '; expected balanced, or JSON such as {"sst": "balanced"}'),
        ("", ["--smart_weight", "x"], '; expected a number, or JSON such as {"sst": 0.2}'),
        ("", ["--max_length", "2"], "--max_length is 2"),
        ("", ["--encoder_dropout", "1.2"], "--encoder_dropout is 1.2"),
        ("", ["--smart_projection", "cube"], "--smart_projection.*invalid choice: 'cube'"),
        ("", ["--smart_radius", "0"], "--smart_radius is 0.0; expected above 0"),
        ("", ["--smart_step_size", "-1"], "--smart_step_size is -1.0"),
        ("", ["--smart_noise_std", "0"], "--smart_noise_std is 0.0"),
        ("", ["--smart_steps", "0"], "--smart_steps is 0; expected at least 1"),
        ("", ["--bregman_momentum", "1"], "--bregman_momentum is 1.0; expected from 0 to below 1"),
        ("", ["--smart_weight", "[1]"], r"--smart_weight is \[1\]; expected a number"),
        ("", ["--encoder_sharing", "both"], "--encoder_sharing.*invalid choice: 'both'"),
        ("", ["--pair_encoding", "tpe"], "--pair_encoding.*invalid choice"),
        ("", ["--pooling", "max"], "--pooling.*invalid choice"),
        ("", ["--early_stopping_patience", "2", "--eval_strategy", "epoch"], "patience needs --eval_strategy steps"),
        ("", ["--save_strategy", "no"], "--save_strategy is 'no' and .*leave out --save_strategy, or"),
    ],
)
def test_mistakes_are_named(tmp_path, yaml, flags, message):
    with pytest.raises(InputError, match=message):
        parse(tmp_path, yaml, *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks", "sentiment"], "unknown task 'sentiment'; choose from sst, quora, sts, cfimdb"),
        (["--tasks", "sst", "sst"], "names 'sst' twice"),
        (["--task_epochs", '{"stt": 3}'], "--task_epochs names 'stt', but the tasks of this run are"),
        (["--head_dropout", '{"sst": 1.0}'], "dropout is 1.0"),
        (["--smart_weight", "-1"], "task 'sst': smart_weight is -1; expected a factor of at least 0"),
        (["--bregman_weight", '{"sts": -2}'], "task 'sts': bregman_weight is -2"),
        (
            ["--class_weights", '{"sts": "balanced"}'],
            "task 'sts': class_weights is 'balanced'; .*'regression' has no classes",
        ),
        (["--class_weights", '{"quora": {"yes": 1}}'], "task 'quora': class_weights has 'yes'"),
        (
            ["--tasks", "sts", "--label_smoothing", "0.1"],
            "task 'sts': label_smoothing is 0.1; .*'regression' has no classes",
        ),
        (["--label_smoothing", '{"sst": 1}'], "task 'sst': label_smoothing is 1"),
        (
            ["--tasks", '{"name": "a", "kind": "binary", "label_names": ["n", "y"], "metric": "rmse"}'],
            "metric is 'rmse'",
        ),
        (["--head_dropout", '{"sst": "high"}'], "task 'sst': dropout is 'high'; expected"),
    ],
)
def test_mistakes_in_tasks_are_named(tmp_path, flags, message):
    with pytest.raises(InputError, match=message):
        parse(tmp_path, "", *flags)[0].load_tasks()


def test_a_missing_config_is_named(tmp_path):
    parser = RecipeParser((RunArguments, MultitaskTrainingArguments), tmp_path / "default.yaml", "a test")
    with pytest.raises(InputError, match="default.yaml: no such configuration file"):
        parser.parse([])


def test_tasks_are_those_of_the_run_that_is_trained_on(tmp_path):
    """Of its run.json, with where its rows are and what it trained them with; of a model without one, config.json."""
    own = {"name": "own", "kind": "regression", "text": "body", "epochs": 2}
    sst = dataclasses.replace(TASKS["sst"], epochs=4)
    (tmp_path / "config.json").write_text(json.dumps({"tasks": [own, sst.to_config()]}))
    run = RunArguments(model_name_or_path=str(tmp_path), tasks=["own", "sst"], task_epochs={"own": 1})
    found = {task.name: task for task in run.load_tasks()}
    assert (found["own"].text, found["own"].epochs, found["own"].files) == ("body", 1, None)
    assert found["sst"] == TASKS["sst"]
    files = {"train": "a.csv", "dev": "b.csv"}
    record = {"tasks": [own | {"files": files}, dataclasses.asdict(sst)]}
    (tmp_path / "run.json").write_text(json.dumps(record))
    found = {task.name: task for task in run.load_tasks()}
    assert (found["own"].files, found["own"].epochs, found["sst"].epochs) == (files, 1, 4)
    (tmp_path / "run.json").write_text('{"tasks": [')
    with pytest.raises(InputError, match="run.json: is damaged"):
        run.load_tasks()
    with pytest.raises(InputError, match="unknown task 'own'"):
        RunArguments(tasks=["own"]).load_tasks()


def test_a_flag_names_a_task_or_group_of_the_run_that_is_trained_on(tmp_path):
    fields = {"kind": "regression", "text": "body", "files": {"train": "a.csv", "dev": "b.csv"}}
    (tmp_path / "run.json").write_text(
        json.dumps({"tasks": [fields | {"name": name, "group": "all"} for name in "ab"]})
    )
    parser = RecipeParser((RunArguments,), "rr_tpe.yaml", "", "train")
    for names, tasks in ((["all"], ["a", "b"]), (["b", "sst"], ["b", "sst"])):
        (tmp_path / "c.yaml").write_text(f"model_name_or_path: {tmp_path}\n")
        run, *_ = parser.parse([str(tmp_path / "c.yaml"), "--tasks", *names])
        assert [task.name for task in run.load_tasks()] == tasks
    with pytest.raises(InputError, match="unknown task 'c'; choose from a, b, all, sst, "):
        parser.parse([str(tmp_path / "c.yaml"), "--tasks", "c"])
