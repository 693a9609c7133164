"""The report as users make it: of runs, tables and the user's own tasks, and the pictures in it."""

import json
import re
import struct
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import run_here, write_table

from bert_multitask.data.rows import load_rows
from bert_multitask.evaluation.tables import prediction_table, write_predictions
from bert_multitask.inference.trained_run import Records
from bert_multitask.model.errors import InputError
from bert_multitask.model.tasks import TASKS, load_task
from bert_multitask.reporting import plots
from bert_multitask.reporting.analysis import LabelledPredictions, digits
from bert_multitask.reporting.document import Document, plain
from bert_multitask.reporting.error_sections import add_worst, neighbour_table
from bert_multitask.reporting.plots import (
    compared_curves,
    confusion_matrix,
    distance_shares,
    length_errors,
    scatter,
    task_order,
    to_png,
    training_curves,
)
from bert_multitask.reporting.report import add_training, titles, write_report
from bert_multitask.reporting.subject import Source, open_sources

REPORT = "report"
SECTIONS = [
    "Scores on dev",
    "Training",
    "Order of the tasks",
    "Classes",
    "Confusion",
    "Predicted and true scores",
    "Error by length",
    "How far off",
    "Calibration",
    "Thresholds",
    "Rows worth reading",
    "Near-duplicates in the training rows",
    "Settings",
]


@pytest.fixture
def train(monkeypatch, tmp_path, tiny_bert, course_folder):
    """Train a tiny run of two evaluations; its folder."""

    def train(name: str, *flags, **settings):
        config = tmp_path / f"{name}.yaml"
        settings = {
            "model_name_or_path": tiny_bert,
            "data_dir": str(course_folder),
            "output_dir": str(tmp_path / name),
            "task_epochs": {"sst": 2, "quora": 1, "sts": 2},
            "per_device_train_batch_size": 4,
            "report_to": "none",
            "disable_tqdm": True,
            "eval_steps": 0.5,
            "save_strategy": "no",
            "load_best_model_at_end": False,
        } | settings
        config.write_text(yaml.safe_dump(settings))
        assert run_here(monkeypatch, config, *flags) == 0
        return tmp_path / name

    return train


def sections(page: str) -> list[str]:
    return re.findall(r"^## (.*)$", page, re.MULTILINE)


def tables(course_folder, folder, tasks=("sst", "quora", "sts"), seed=0):
    """Random predictions for the dev rows of the course's folder."""
    rng = np.random.default_rng(seed)
    for name in tasks:
        rows = load_rows(TASKS[name], str(course_folder))["dev"]
        logits = rng.standard_normal((len(rows), 5) if name == "sst" else len(rows))
        write_predictions(TASKS[name], prediction_table(TASKS[name], rows["id"][:], logits), folder / f"{name}-dev")
    return folder


def test_a_run(monkeypatch, train, capsys):
    run = train("run", "--max_steps", 6)
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    history = [entry | ({"eval_overall": 0.5} if "eval_overall" in entry else {}) for entry in history]
    (run / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))
    assert run_here(monkeypatch, run, recipe=REPORT) == 0
    assert str(run / "report" / "report.html") in capsys.readouterr().out
    page = (run / "report" / "report.md").read_text(encoding="utf-8")
    first = next(entry["step"] for entry in history if "eval_overall" in entry)
    assert f"highest, 0.500, at step {first}." in page, "of equal scores the first, which Trainer keeps"
    assert sections(page) == SECTIONS
    metrics = json.loads((run / "metrics.json").read_text())
    for name, key in (("sst", "sst_accuracy"), ("quora", "quora_accuracy"), ("sts", "sts_pearson"), ("overall",) * 2):
        (score,) = re.findall(rf"^\| {name} \| (-?\d\.\d+) \|", page.partition("## Training")[0], re.MULTILINE)
        assert score == f"{metrics[f'eval_{key}']:.{len(score.partition('.')[2])}f}" and len(score) >= 4, name
    pictures = re.findall(r"^!\[.+\]\((.+)\)$", page, re.MULTILINE)
    assert sorted(pictures) == sorted(path.name for path in (run / "report").glob("*.png")) and len(pictures) == 8
    for name in pictures:
        width, height = struct.unpack(">II", (run / "report" / name).read_bytes()[16:24])
        assert width == 1600 and 400 < height <= 1850, name  # twice what a page shows them at
    html = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert html.count('src="data:image/png;base64,') == html.count("src=") == html.count("alt=") == 8
    assert not re.search(r"https?://|<link", html) and html.count("<script>") == html.count("<script") == 1
    assert re.search(r"^Made on \d{4}-\d\d-\d\d by bert\\_multitask ", page, re.MULTILINE)


def test_rows_are_counted_that_are_trained_on_and_scored(train, course_folder, capsys):
    """By the table of a run, its card and its report."""
    header = ["", "id", "sentence", "sentiment"]
    for split, labels in (("train", [0, 1, "", 2, "NA", 3]), ("dev", [4, "", 1])):
        rows = [[n, n, f"{split} {n}", label] for n, label in enumerate(labels)]
        write_table(course_folder / f"ids-sst-{split}.csv", header, rows)
    run = train("run", "--max_steps", 2, "--tasks", "sst")
    note = "(the others have no label or no text)"
    assert re.search(
        r"^sst +4 +2 +3  of 6 / 3 / 3 that were read; the others have no label", capsys.readouterr().out, re.M
    )
    card = (run / "README.md").read_text(encoding="utf-8")
    assert all(f"| sst | {cells} |" in card for cells in (f"train | 4 of 6 {note}", f"dev | 2 of 3 {note}", "test | 3"))
    write_report(run, run / "report")
    page = (run / "report" / "report.md").read_text(encoding="utf-8")
    assert f"| 4 of 6 {note} | 2 of 3 {note} | 3 |" in page.partition("## Settings")[2]
    record = json.loads((run / "run.json").read_text())
    del record["used_rows"]  # as earlier versions wrote it
    (run / "run.json").write_text(json.dumps(record))
    write_report(run, run / "report")
    assert "| 6 | 3 | 3 |" in (run / "report" / "report.md").read_text(encoding="utf-8").partition("## Settings")[2]


def test_titles_have_the_names_of_runs(tmp_path, monkeypatch):
    """Without their folders, unless only those tell two runs apart; a Hub id is a name as it is."""
    names = [str(tmp_path / folder / run) for folder, run in (("a", "small"), ("a", "large"), ("b", "small"))]
    for name in names:
        Path(name).mkdir(parents=True)
    assert titles(names[:2]) == ["small", "large"] and titles([names[0], "me/desk"]) == ["small", "me/desk"]
    assert titles([names[0], names[2]]) == [names[0], names[2]]
    monkeypatch.chdir(names[0])
    assert titles(["."]) == ["small"]


def test_cosines_of_groups_are_drawn(monkeypatch):
    """By the names that the log has: a group is one."""
    tasks = {name: replace(TASKS["sst"], name=name, group=group) for name, group in zip("abc", "gg", strict=False)}
    tasks |= {"sts": TASKS["sts"]}
    history = [{"step": 1, "loss": 1.0, "cosine_g_g": 0.1, "cosine_g_sts": -0.5, "cosine_sts_sts": 0.2}]
    drawn, draw = [], plots.draw_curve

    def note(axes, history, key, **style):
        drawn.append(key)
        draw(axes, history, key, **style)

    monkeypatch.setattr(plots, "draw_curve", note)
    add_training(Document("a run"), Source("run", tasks, {}, [], Records(Path("run"), None, None, {}), history))
    assert {key for key in drawn if key.startswith("cosine_")} == {"cosine_g_g", "cosine_g_sts", "cosine_sts_sts"}


def test_the_plan_is_the_runs(train):
    """Recomputed from run.json: as many steps of each task, in the order in which history has their losses."""
    run = train("run", "--budget", 0.7, "--seed", 3, "--logging_steps", 1)
    (source,) = open_sources([str(run)], "dev")
    losses = [entry for entry in source.history if "loss" in entry]
    tasks = [next(key.removeprefix("loss_") for key in entry if key.startswith("loss_")) for entry in losses]
    assert source.plan() == tasks
    del source.records.run["batches"]
    assert source.plan() is None


def test_two_runs(train, course_folder, tmp_path):
    run = train("run", "--max_steps", 2, "--schedule", "sequential")
    folder = tables(course_folder, tmp_path / "tables", tasks=["sst", "sts"])
    write_report(run, tmp_path / "out", other=folder)
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert sections(page) == [SECTIONS[0], "Comparison", *SECTIONS[1:]]
    assert page.startswith("# Report of run, compared with tables\n")
    comparison = page.partition("## Comparison")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (\w+) \|", comparison, re.MULTILINE) == ["task", "sst", "sts", "overall"]
    assert "B: Task quora is not scored: there are no predictions" in comparison


def test_tables_without_a_run(monkeypatch, course_folder, tmp_path, capsys):
    folder = tables(course_folder, tmp_path / "tables")
    assert run_here(monkeypatch, folder, recipe=REPORT) == 2
    assert "does not say where its rows are; name a folder, a URL or hub with --data_dir" in capsys.readouterr().err
    assert run_here(monkeypatch, folder, "--data_dir", course_folder, recipe=REPORT) == 0
    page = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert sections(page) == [name for name in SECTIONS if name not in ("Training", "Order of the tasks", "Settings")]
    write_report(folder / "sts-dev.parquet", tmp_path / "one", data_dir=str(course_folder))
    page = (tmp_path / "one" / "report.md").read_text(encoding="utf-8")
    assert sections(page) == ["Scores on dev", *SECTIONS[5:8], *SECTIONS[10:12]]


def test_what_an_ensemble_takes(train, course_folder, tmp_path):
    """CSV files score as the Parquet files do, without losses; a run without predictions predicts them."""
    folder = tables(course_folder, tmp_path / "tables", tasks=["sst", "quora"])
    write_report(folder, tmp_path / "parquet", data_dir=str(course_folder))
    write_report(
        folder / "sst-dev.csv", tmp_path / "csv", other=folder / "sst-dev.parquet", data_dir=str(course_folder)
    )
    parquet, csv = ((tmp_path / name / "report.md").read_text() for name in ("parquet", "csv"))
    (line,) = re.findall(r"^\| sst \| .* \| accuracy \|$", parquet, re.MULTILINE)
    assert line in csv and "| sst | " + line.split(" | ")[1] in csv.partition("## Comparison")[2]
    assert "Calibration" in sections(parquet) and "Calibration" not in sections(csv)
    run = train("run", "--max_steps", 2, "--do_predict", "false")
    write_report(run, tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert sections(page) == SECTIONS
    metrics = json.loads((run / "metrics.json").read_text())
    assert f"{metrics['eval_sst_accuracy']:.2f}" in page and f"{metrics['eval_sts_pearson']:.2f}" in page


def test_an_ensemble(monkeypatch, course_folder, tmp_path):
    """Its members and picks, in their order, with the scores that the ensemble's recipe gave them."""
    one, two = (str(tables(course_folder, tmp_path / f"m{seed}", ["quora", "sst"], seed)) for seed in (1, 2))
    both = tmp_path / "both"
    flags = ["--data_dir", course_folder, "--select", "greedy", "--output_dir", both]
    assert run_here(monkeypatch, two, one, *flags, recipe="ensemble") == 0
    write_report(both, tmp_path / "out", data_dir=str(course_folder))
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert sections(page)[:2] == ["Scores on dev", "Members"] and "Settings" not in sections(page)
    members = page.partition("## Members")[2].partition("\n## ")[0]
    record = json.loads((both / "ensemble.json").read_text())
    assert plain(f"Vote: mode, of {two}, {one}.") in members
    for task, picks in record["picks"].items():
        assert plain(f"Selected for {task}: {picks.count(picks[0])} × {picks[0]}") in members
    lines = [line.strip("| ").split(" | ") for line in members.splitlines() if line.startswith("| ")]
    assert len(lines) == 12 and lines[0] == ["dev, the half selected on", "sst", "quora", "overall"]
    scores = record["scores"]["dev, the other half"]
    keys = ("eval_sst_accuracy", "eval_quora_accuracy", "eval_overall")  # of few rows
    for name, line in zip([two, one, "all 2, mode", "selected, mode"], lines[8:], strict=True):
        assert line == [plain(name), *(f"{scores[name][key]:.4f}" for key in keys)]


def test_data_that_moved(train, course_folder, tmp_path):
    run = train("run", "--max_steps", 2)
    course_folder.rename(tmp_path / "elsewhere")
    with pytest.raises(
        InputError, match=f"--data_dir {course_folder}: no such folder; expected one that holds ids-sst"
    ):
        write_report(run, tmp_path / "none")
    write_report(run, tmp_path / "out", data_dir=str(tmp_path / "elsewhere"))
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert sections(page) == SECTIONS
    assert not (tmp_path / "none").exists()


def test_a_task_without_labels_is_left_out(course_folder, tmp_path):
    folder = tables(course_folder, tmp_path / "tables")
    file = course_folder / "ids-sst-dev.csv"
    lines = [line.rpartition("\t")[0] + "\t" for line in file.read_text().splitlines()[1:]]
    file.write_text("\n".join(["\tid\tsentence\tsentiment", *lines]) + "\n")
    write_report(folder, tmp_path / "out", data_dir=str(course_folder))
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "Task sst is not scored: no dev row has a label." in page
    assert re.search(r"^\| quora \|.* accuracy \|$", page, re.MULTILINE) and "| sst |" not in page
    for file in [*folder.glob("quora-*"), *folder.glob("sts-*")]:
        file.unlink()
    with pytest.raises(InputError, match="there is nothing to score. Task sst"):
        write_report(folder, tmp_path / "none", data_dir=str(course_folder))


def test_tasks_of_the_users_own(monkeypatch, train, tmp_path):
    """A pair of classes, a yes or no, and a score on a scale of its own, in the YAML alone; and an ensemble of them.
    The `run.json` of each member names the files of the rows."""
    specs = [
        {"name": "nli", "kind": "classification", "text_pair": "second", "label_names": ["yes", "maybe", "no"]},
        {"name": "spam", "kind": "binary", "label_names": ["fine", "spam"]},
        {"name": "level", "kind": "regression", "score_range": [-1, 1]},
    ]
    for spec in specs:
        for split, count in (("train", 8), ("dev", 9)):
            rows = [
                [i, f"<b>text</b> {i}", "second", [i % 3, i % 2, i % 5 / 2 - 1][specs.index(spec)]]
                for i in range(count)
            ]
            write_table(tmp_path / f"{spec['name']}-{split}.csv", ["id", "sentence", "second", "label"], rows)
        spec |= {
            "epochs": 1,
            "files": {split: str(tmp_path / f"{spec['name']}-{split}.csv") for split in ("train", "dev")},
        }
    run = train("run", tasks=specs, task_epochs=None)
    write_report(run, tmp_path / "out")
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "How far off" in sections(page) and "nli: true label" not in page, "its classes have no order"
    assert "8 rows" not in page and "\\<b\\>text\\</b\\>" in page
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} >= {
        "confusion-nli",
        "confusion-spam",
        "scatter-level",
    }
    folder = run / "predictions"
    ensemble = tmp_path / "ensemble"
    assert run_here(monkeypatch, run, run, "--output_dir", ensemble, recipe="ensemble") == 0
    write_report(ensemble, tmp_path / "both")
    page = (tmp_path / "both" / "report.md").read_text(encoding="utf-8")
    assert sections(page)[:2] == ["Scores on dev", "Members"] and "Near-duplicates in the training rows" in sections(
        page
    )
    with pytest.raises(InputError, match="does not say where the rows of its task 'level' are: --tasks '{\"name\": "):
        write_report(folder, tmp_path / "none", data_dir=str(tmp_path))
    named = [json.dumps({key: spec[key] for key in ("name", "files")}) for spec in specs]
    write_report(folder, tmp_path / "again", data_dir=str(tmp_path), tasks=named)
    page = (tmp_path / "again" / "report.md").read_text(encoding="utf-8")
    assert re.search(r"^\| nli \|.* 9 \| accuracy \|$", page, re.MULTILINE)


def test_mistakes_are_named(course_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "gone", "gone: no such folder"),
        (tmp_path / "empty", "empty: no table {task}-dev.parquet or .csv, and no run to predict it"),
    ):
        with pytest.raises(InputError, match=words):
            write_report(path, tmp_path / "out", data_dir=str(course_folder))
    with pytest.raises(InputError, match="sts-dev.csv: begins with '.*; expected 'id"):
        write_report(course_folder / "sts-dev.csv", tmp_path / "out", data_dir=str(course_folder))
    one, two = (tables(course_folder, tmp_path / name, tasks=[name]) for name in ("sst", "sts"))
    with pytest.raises(InputError, match="sts: has no task in common with .*sst"):
        write_report(one, tmp_path / "out", other=two, data_dir=str(course_folder))


def predictions(name: str, labels, predicted, texts=None, probabilities=None) -> LabelledPredictions:
    count = len(labels)
    return LabelledPredictions(
        task=load_task(name),
        ids=[f"r{number}" for number in range(count)],
        texts=texts or [("a text",)] * count,
        labels=np.array(labels),
        predicted=np.array(predicted),
        probabilities=probabilities,
    )


DECIDES = {"tasks": ["a"], "seed": 0, "data_seed": None, "schedule": "round_robin", "max_steps": -1}


@pytest.mark.parametrize(
    ("batches", "decides"),
    [
        ({"a": 3}, {key: DECIDES[key] for key in DECIDES if key != "seed"}),
        ({"b": 3}, DECIDES),
        ({"a": "many"}, DECIDES),
        ([3], DECIDES),
        ({"a": 3}, DECIDES | {"schedule": "sometimes"}),
        ({"a": 3}, DECIDES | {"max_steps": None}),
        ({"a": -3}, DECIDES),
    ],
    ids=["no seed", "another task", "a word", "a list", "an unknown schedule", "no number of steps", "negative"],
)
def test_a_damaged_plan_is_refused(batches, decides):
    records = Records(Path("runs/x"), {"batches": batches, "decides": decides}, None, {})
    source = Source("runs/x", {}, {}, [], records, [])
    with pytest.raises(InputError, match="runs/x/run.json"):
        source.plan()


def test_a_report_of_test_fits_on_dev(course_folder, tmp_path):
    """Where the folder has dev tables too; else on halves."""
    folder = tables(course_folder, tmp_path / "tables")
    rng = np.random.default_rng(1)
    for name in ("sst", "quora"):
        dev = (course_folder / TASKS[name].files["dev"]).read_text()
        (course_folder / TASKS[name].files["test"]).write_text(dev)
        rows = load_rows(TASKS[name], str(course_folder))["test"]
        table = prediction_table(
            TASKS[name], rows["id"][:], rng.standard_normal((len(rows), 5) if name == "sst" else 7)
        )
        write_predictions(TASKS[name], table, folder / f"{name}-test")
    for words in ("was fitted on the dev rows, and is judged on these", "was fitted on these rows themselves"):
        write_report(folder, tmp_path / "out", data_dir=str(course_folder), tasks=["sst", "quora"], split="test")
        page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
        assert sections(page)[0] == "Scores on test"
        assert f"The temperature {words}" in page and f"The threshold {words}" in page
        for file in folder.glob("*-dev.*"):
            file.unlink()


@pytest.mark.parametrize(("rows", "expected"), [(5, 2), (99, 2), (100, 3), (9_999, 3), (40_429, 4)])
def test_decimals_fit_the_rows(rows, expected):
    """A figure is shown to the row, and no further than its interval, about 1 / sqrt(rows), makes sensible."""
    assert digits(rows) == expected


def test_scores_have_their_errors_and_baselines(course_folder, tmp_path):
    folder = tables(course_folder, tmp_path / "tables", ["sts"])
    (source,) = open_sources([str(folder)], "dev", data_dir=str(course_folder))
    labels, predicted = source.predictions["sts"].labels, source.predictions["sts"].predicted
    write_report(folder, tmp_path / "out", data_dir=str(course_folder))
    page = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    errors = predicted - labels
    values = abs(errors).mean(), abs(labels - labels.mean()).mean(), (errors**2).mean() ** 0.5, labels.std()
    assert f"| sts | 5 | {' | '.join(f'{value:.2f}' for value in values)} |" in page


def test_how_far_off():
    table = neighbour_table(predictions("sst", [0, 0, 0, 0, 4], [0, 1, 1, 3, 4]))
    assert table.rows == [
        ["negative", "4", "25 %", "50 %", "25 %"],
        ["positive", "1", "100 %", "0 %", "0 %"],
        ["all", "5", "40 %", "40 %", "20 %"],
    ]
    table = neighbour_table(predictions("sts", [0.0, 0.5, 5.0, 5.0], [0.4, 1.4, 3.0, 5.0]))
    assert table.rows == [
        ["0 to 1", "2", "50 %", "50 %", "0 %"],
        ["4 to 5", "2", "50 %", "0 %", "50 %"],
        ["all", "4", "50 %", "25 %", "25 %"],
    ]


def test_worst_rows_show_texts_as_they_are():
    document = Document("x")
    long = "word " * 200
    part = predictions("sst", [0, 4], [4, 0], [("<script>alert(1)</script> | x",), (long,)], np.eye(5)[[4, 0]])
    add_worst(document, {"sst": part})
    html, markdown = document.html(), document.markdown()
    assert html.count("<script") == 1 and "&lt;script&gt;alert(1)&lt;/script&gt; | x" in html
    assert "\\<script\\>alert(1)\\</script\\> \\| x" in markdown
    assert long not in html and "word…" in html
    assert "negative" in html and "0.0000" in html
    document = Document("x")
    add_worst(document, {"sst": predictions("sst", [0], [0])})
    assert "Every row is right." in document.html()


def test_the_numbers_are_in_the_pictures():
    part = predictions("sst", [0, 0, 0, 1], [0, 0, 1, 1])
    axis = confusion_matrix(part).axes[0]
    cells = {(round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in axis.texts}
    assert cells[0, 0] == "67 %\n2" and cells[0, 1] == "33 %\n1" and cells[1, 1] == "100 %\n1"  # (true, predicted)
    assert axis.get_xlabel().startswith("true") and axis.get_ylabel().startswith("predicted")
    axis = scatter(predictions("sts", [1.0, 2.0], [3.0, 4.0])).axes[0]
    np.testing.assert_array_equal(axis.collections[0].get_offsets(), [[1, 3], [2, 4]])
    np.testing.assert_array_equal(axis.lines[0].get_xydata(), [[0, 0], [5, 5]])
    top, bottom = task_order(["a", "b"] * 500 + ["a"] * 10, ["a", "b"]).axes
    first = [[path.get_extents().intervalx.tolist() for path in bars.get_paths()] for bars in top.collections]
    assert first == [[[n - 0.5, n + 0.5] for n in range(start, 301, 2)] for start in (1, 2)]
    top = task_order(["a"] * 3 + ["b"] * 2 + ["a"], ["a", "b", "c"]).axes[0]
    assert [len(bars.get_paths()) for bars in top.collections] == [4, 2, 0], "a bar for each step"
    assert top.get_ylim() == (2.5, -0.5), "a task without a step has its line"
    assert sum(bar.get_height() * bar.get_width() for bar in bottom.patches) == pytest.approx(100 * 1010)
    assert sum(bar.get_height() * bar.get_width() for bar in bottom.containers[1]) == pytest.approx(100 * 500)


def test_curves_show_what_history_has():
    history = [
        {"step": 1, "loss": 2.0, "loss_sst": 2.0, "accuracy_sst": 0.2},
        {"step": 2, "eval_sst_accuracy": 0.5, "eval_sst_loss": 1.0, "eval_overall": 0.5},
        {"step": 4, "eval_sst_accuracy": 0.4, "eval_sst_loss": 0.9, "eval_overall": 0.4},
        {"step": 4, "train_loss": 1.5},
    ]
    figure = training_curves(history, {"sst": TASKS["sst"], "quora": TASKS["quora"]})
    lines = [[line.get_xydata().tolist() for line in axis.lines] for axis in figure.axes]
    dev, best = [[2, 0.5], [4, 0.4]], [[2, 0.5]]
    assert lines == [[[[1, 2.0]], [[2, 1.0], [4, 0.9]]], [[[1, 0.2]], dev, best], [], [], [[[1, 2.0]]], [dev, best]]
    assert to_png(figure).startswith(b"\x89PNG")


def test_a_run_without_evaluations_has_no_panel_of_them():
    figure = training_curves([{"step": n, "loss": 2.0, "loss_sst": 2.0} for n in (1, 2)], {"sst": TASKS["sst"]})
    assert drawn_inside(figure)
    assert [axis.get_title() for axis in figure.axes] == ["sst: loss", "sst: accuracy", "all tasks: loss"]
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "step", "step"]


def drawn_inside(figure) -> bool:
    """Whether nothing leaves the figure, and no title runs into another."""
    figure.draw_without_rendering()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    titles = [axis.title.get_window_extent() for axis in figure.axes if axis.get_title()]
    apart = not any(one.overlaps(other) for one, other in combinations(titles, 2))
    return apart and box.x0 > -0.02 and box.y0 > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02


def test_long_names_are_not_cut():
    name = "sentiment_of_customer_reviews"
    task = replace(TASKS["sst"], name=name)
    part = replace(predictions("sst", [0, 1, 2, 3, 4] * 20, [0, 1, 2, 4, 4] * 20), task=task)
    history = [{"step": 1000 * n, f"eval_{name}_accuracy": 0.5, "eval_overall": 0.5, "loss": 1.0} for n in (1, 2)]
    tasks = {name: task, "quora": TASKS["quora"]}
    assert drawn_inside(training_curves(history, tasks))
    assert drawn_inside(compared_curves({"A": history, "B": history}, tasks))
    assert drawn_inside(length_errors([part, part]))
    assert drawn_inside(distance_shares([part, part]))
    assert drawn_inside(confusion_matrix(part))
    assert drawn_inside(task_order([name, "b"] * 50, [name, "b"]))


def test_both_runs_are_in_the_picture():
    histories = {
        run: [
            {"step": step, "eval_sst_accuracy": step / 10 + shift, "eval_sst_loss": 1.0, "eval_overall": 0.5}
            for step in (2, 4)
        ]
        for run, shift in (("A", 0), ("B", 0.1))
    }
    figure = compared_curves(histories, {"sst": TASKS["sst"]})
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[1].lines}
    assert lines == {"A": [[2, 0.2], [4, 0.4]], "B": [[2, pytest.approx(0.3)], [4, 0.5]]}


def test_many_classes_have_a_picture():
    task = load_task({"name": "many", "kind": "classification", "label_names": [f"class {i}" for i in range(30)]})
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 30, 200)
    part = LabelledPredictions(task, ["x"] * 200, [("x",)] * 200, labels, labels, None)
    assert len(confusion_matrix(part).axes[0].texts) == 0


def test_source_reads_no_history_of_a_table(course_folder, tmp_path):
    folder = tables(course_folder, tmp_path / "tables", ["sst"])
    (source,) = open_sources([str(folder / "sst-dev.parquet")], "dev", data_dir=str(course_folder))
    assert source.records.run is None and source.history == [] and list(source.predictions) == ["sst"]


@pytest.mark.parametrize("content", [b'{"members"', b"[1]", b"7", b"[" * 100_000, b'{"a": "\xff"}'])
def test_a_damaged_record_of_an_ensemble_is_refused(tmp_path, content):
    (tmp_path / "ensemble.json").write_bytes(content)
    with pytest.raises(InputError, match="ensemble.json: (is damaged|cannot be read)"):
        Records.read(tmp_path)
    assert Records.read(tmp_path / "none").ensemble is None
