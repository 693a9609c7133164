"""`bert-multitask` and `python -m bert_multitask`: the help, the errors, configurations by name, an installation."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import MINILM, ROOT, run_here

from bert_multitask.__main__ import COMMANDS
from bert_multitask.commands.command_line import FLAGS
from bert_multitask.data.rows import SAMPLE
from bert_multitask.model.errors import InputError
from bert_multitask.training import stopping
from bert_multitask.training.arguments import MultitaskTrainingArguments, RunArguments
from bert_multitask.training.jobs import SeedArguments
from bert_multitask.training.search_space import TuneArguments
from bert_multitask.training.yaml_file import CONFIGS, find_config, load_yaml

REQUIRED = {  # what a command needs to be called with, but for --output_dir
    "predict": ["RUN", "--split", "dev"],
    "ensemble": ["RUN"],
    "soup": ["RUN"],
    "export": ["RUN", "--task", "sst"],
}


def test_every_command_is_a_file():
    files = {path.stem for path in (ROOT / "bert_multitask" / "commands").glob("*.py")}
    assert files - {"__init__", "command_line"} == set(COMMANDS)


def test_the_help_and_mistakes_need_no_torch(tmp_path):
    code = "import sys\nfrom bert_multitask.__main__ import main\nsys.argv[1:] = sys.argv[1:]\n"
    code += "try:\n    main()\nfinally:\n    assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    for argv, status in [([], 0), (["--help"], 0), (["trian"], 2)]:
        run = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
        assert run.returncode == status, run.stderr
        assert all(name in run.stdout + run.stderr for name in COMMANDS)
        assert len(run.stderr.splitlines()) == (status == 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help(monkeypatch, capsys, command):
    assert run_here(monkeypatch, "--help", recipe=command) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: bert-multitask {command} ") and f"    bert-multitask {command} " in printed


@pytest.mark.parametrize("command", ["train", "tune"])
def test_the_help_shows_what_people_set_and_help_all_the_rest(monkeypatch, capsys, command):
    help_at = {}
    for columns in (80, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run_here(monkeypatch, "--help", recipe=command) == 0
        help_at[columns] = capsys.readouterr().out
    short = help_at[120]
    assert run_here(monkeypatch, "--help-all", recipe=command) == 0
    long = capsys.readouterr().out
    shown = [name for names in FLAGS.values() for name in names.split()]
    own = fields({"train": SeedArguments, "tune": TuneArguments}[command])  # flags that only this command has
    shown += [field.name for field in own]
    assert all(f"\n{heading}:\n" in short for heading in FLAGS)
    assert len(help_at[80].splitlines()) < 90 and len(short.splitlines()) <= 60 + (command == "tune")
    for arguments in (RunArguments, MultitaskTrainingArguments):
        for name in (field.name for field in fields(arguments) if field.init):
            pattern = rf"^  --{name}\b"
            assert re.search(pattern, long, re.M) and bool(re.search(pattern, short, re.M)) == (name in shown), name
    assert 30 <= len([name for names in FLAGS.values() for name in names.split()]) <= 36


@pytest.mark.parametrize("command", REQUIRED)
def test_mistakes_are_one_line(monkeypatch, capsys, command):
    for argv, message in [
        (REQUIRED[command], "--output_dir"),
        ([*REQUIRED[command], "--output_dir", "OUT", "--no_such_flag"], "--no_such_flag"),
    ]:
        assert run_here(monkeypatch, *argv, recipe=command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line


def test_a_configuration_is_found_by_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shipped = CONFIGS / "paper" / "rr_tpe.yaml"
    for name in ("paper/rr_tpe", "paper/rr_tpe.yaml", "package:bert_multitask/configs/paper/rr_tpe.yaml", shipped):
        assert find_config(name).samefile(shipped)
    (tmp_path / "quickstart.yaml").touch()
    assert find_config("quickstart.yaml") == Path("quickstart.yaml"), "the user's own comes first"
    with pytest.raises(InputError, match=r"configs/rr_tpe.yaml: no .* ships .*, rr_tpe, .*, and others in paper/"):
        load_yaml(find_config("recipes/configs/rr_tpe.yaml"))


def test_the_command_that_goes_on_is_the_one_that_was_typed(monkeypatch, tmp_path):
    """A recipe, a module, the command that the shell finds, and the same by its path."""
    script = tmp_path / "bert-multitask"
    script.touch(mode=0o755)
    module = SimpleNamespace(__spec__=SimpleNamespace(name="bert_multitask.__main__"))
    for main, argv, path, expected in [
        (None, ["recipes/train_multitask.py", "a b"], "", [sys.executable, "recipes/train_multitask.py", "a b"]),
        (module, ["/x/__main__.py", "train", "c"], "", [sys.executable, "-m", "bert_multitask", "train", "c"]),
        (None, [str(script), "train", "c"], str(tmp_path), ["bert-multitask", "train", "c"]),
        (None, [str(script), "train", "c"], "", [sys.executable, str(script), "train", "c"]),
    ]:
        monkeypatch.setitem(sys.modules, "__main__", main or SimpleNamespace(__spec__=None))
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setenv("PATH", path)
        assert stopping.resume_command(False) == shlex.join([*expected, "--resume_from_checkpoint"])


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["--overwrite"], []),
        (["--overwrite", "--seed", "1"], ["--seed", "1"]),
        (["--seed", "1", "--overwrite", "true"], ["--seed", "1"]),
        (["--overwrite=true", "--seed", "1"], ["--seed", "1"]),
        ([], ["--overwrite", "false"]),
    ],
    ids=["alone", "first", "with a value", "with =", "in the YAML"],
)
def test_the_command_that_goes_on_does_not_overwrite(monkeypatch, typed, expected):
    monkeypatch.setattr(stopping, "own_command", lambda: ["bert-multitask", "train", "c.yaml", *typed])
    command = ["bert-multitask", "train", "c.yaml", *expected, "--resume_from_checkpoint"]
    assert stopping.resume_command(True) == shlex.join(command)


@pytest.mark.parametrize("typed", [["--resume_from_checkpoint"], ["--resume_from_checkpoint", "R/checkpoint-5"]])
def test_the_command_that_goes_on_again_is_the_same(monkeypatch, typed):
    """From the last checkpoint, whatever the stopped run began with; a flag that takes the file's back stays."""
    given = ["bert-multitask", "train", "c.yaml", "--overwrite", "false"]
    monkeypatch.setattr(stopping, "own_command", lambda: [*given, *typed])
    assert stopping.resume_command(False) == shlex.join([*given, "--resume_from_checkpoint"])


@pytest.mark.parametrize("flag", ["-m", "--module"])
def test_a_launcher_of_a_module_is_known(monkeypatch, flag):
    launcher = [sys.executable, "accelerate", "launch", flag, "bert_multitask", "train", "c.yaml"]
    parent = SimpleNamespace(pid=7, cmdline=lambda: launcher)
    monkeypatch.setattr(stopping.psutil, "Process", lambda *_: SimpleNamespace(parent=lambda: parent, **vars(parent)))
    module = SimpleNamespace(__spec__=SimpleNamespace(name="bert_multitask.__main__"))
    monkeypatch.setitem(sys.modules, "__main__", module)
    monkeypatch.setattr(sys, "argv", ["/x/bert_multitask/__main__.py", "train", "c.yaml"])
    assert stopping.find_launcher() == 7 and stopping.own_command() == launcher
    monkeypatch.setattr(sys, "argv", ["/x/bert_multitask/__main__.py", "train", "d.yaml"])
    assert stopping.find_launcher() is None


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The programs of a virtual environment with the package installed, and its dependencies but not the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    shutil.copytree(ROOT / "bert_multitask", source / "bert_multitask", ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    scheme = {"base": str(folder / "venv"), "platbase": str(folder / "venv")}
    packages = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    others = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*pip, "--ignore-installed", source], check=True)
    return python.parent


@pytest.mark.slow
def test_an_installation_works_from_another_folder(installed, tmp_path):
    """Without a checkout: the package is the installed one, and every command runs."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ |= {"PATH": f"{installed}:{environ['PATH']}", "OMP_NUM_THREADS": "2"}

    def run(*argv: str) -> str:
        process = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300)
        assert process.returncode == 0, process.stderr
        assert "Loading weights" not in process.stderr, "no progress bars of libraries in a pipe"
        return process.stdout

    where = run("python", "-c", "import bert_multitask; print(bert_multitask.__file__)")
    assert where.startswith(str(installed.parent))
    for command in COMMANDS:
        assert f"usage: bert-multitask {command}" in run("bert-multitask", command, "--help")
    assert "--smart_radius" in run("python", "-m", "bert_multitask", "train", "--help-all")
    small = ["--max_steps", "2", "--report_to", "none", "--output_dir", "run"]
    assert "dev score" in run("bert-multitask", "train", "quickstart", *small)
    predict = ["predict", "run", "--split", "dev", "--output_dir", "new"]
    assert "predictions: new" in run("bert-multitask", *predict)
    assert "report: run/report/report.html" in run("bert-multitask", "report", "run")
    scores, metrics = (json.loads((tmp_path / name).read_text()) for name in ("new/scores.json", "run/metrics.json"))
    assert scores["eval_overall"] == pytest.approx(metrics["eval_overall"], abs=1e-4)
    launcher = ["python", "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1", "-m", "bert_multitask"]
    train = ["train", "paper/rr_tpe", "--model_name_or_path", MINILM, "--data_dir", SAMPLE, *small[:4]]
    assert "dev score" in run(*launcher, *train, "--output_dir", "other")
