"""The conventions of the Hugging Face ecosystem: types, logs, caches, offline mode, metrics on their own."""

import ast
import inspect
import json
import os
import subprocess
import sys

import evaluate
import pytest
from conftest import MINILM, ROOT
from scipy.stats import pearsonr
from sklearn.metrics import accuracy_score
from transformers.utils import logging

import bert_multitask
from bert_multitask.data.rows import load_rows
from bert_multitask.evaluation.metrics import METRICS
from bert_multitask.model.tasks import TASKS

# Ends a process at its first try to reach another machine.
NO_NETWORK = """
import os, runpy, socket, sys
socket.getaddrinfo = lambda *address, **_: (print("network:", address, file=sys.stderr), os._exit(99))
sys.argv = sys.argv[1:]
"""


def run_offline(code: str, *argv: str, **environ: str) -> subprocess.CompletedProcess:
    """Run Python code in a fresh process, with the Hub's and the caches' variables as given here alone."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environ = inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environ
    command = [sys.executable, "-c", NO_NETWORK + code, *argv]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=600)


def own_functions(name: str):
    """Yield the functions and methods that a public name has from this package, by their full names."""
    value = getattr(bert_multitask, name)
    if inspect.isfunction(value):
        yield name, value
    for key, member in vars(value).items() if inspect.isclass(value) else ():
        if isinstance(member, property):
            member = member.fget
        function = inspect.unwrap(getattr(member, "__func__", member))
        if inspect.isfunction(function) and function.__module__.startswith("bert_multitask"):
            if key == "__init__" or not key.startswith("_"):
                yield f"{name}.{key}", function


@pytest.mark.parametrize("name", bert_multitask.__all__)
def test_public_names_are_typed(name):
    for full_name, function in own_functions(name):
        signature = inspect.signature(function)
        for parameter in list(signature.parameters.values())["." in full_name :]:
            assert parameter.annotation is not parameter.empty, f"{full_name}: {parameter.name}"
        if not full_name.endswith("__init__"):
            assert signature.return_annotation is not signature.empty, f"{full_name}: what it returns"


def test_functions_are_found():
    found = {full_name for name in bert_multitask.__all__ for full_name, _ in own_functions(name)}
    assert {"load_rows", "MultitaskBertModel.from_pretrained", "MultitaskBertModel.forward"} < found
    assert {"MultitaskTrainer.evaluate", "MultitaskTrainer.__init__", "PaperAdamW.step"} < found


def test_type_checkers_see_the_public_names():
    """They do not run `__getattr__`, so the names are imported for them, from the same modules."""
    tree = ast.parse((ROOT / "bert_multitask" / "__init__.py").read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.asname: (node.module, alias.name) for node in block.body for alias in node.names}
    assert seen == {name: (module, name) for name, module in bert_multitask._MODULES.items()}


def test_make_types_checks_every_public_name():
    tree = ast.parse((ROOT / "tests" / "public_names.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "bert_multitask"]
    assert {alias.name for node in imports for alias in node.names} == set(bert_multitask.__all__)


def test_the_package_ships_its_types_and_its_sample(tmp_path):
    code = f"import setuptools; setuptools.setup(script_args=['-q', 'build', '--build-base', {str(tmp_path)!r}])"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    built = {path.name for path in (tmp_path / "lib" / "bert_multitask").rglob("*")}
    assert {"py.typed", "__init__.py", "ids-sst-train.csv", "quickstart.yaml", "3bert_tpe_smart_df.yaml"} <= built


def test_the_verbosity_of_transformers_holds(course_folder, caplog, propagated_logs):
    (course_folder / "sts-test-student.csv").unlink()
    before = logging.get_verbosity()
    try:
        logging.set_verbosity_error()
        load_rows(TASKS["sts"], str(course_folder), ["train", "test"])
        assert not caplog.messages
        logging.set_verbosity_warning()
        load_rows(TASKS["sts"], str(course_folder), ["train", "test"])
        assert len(caplog.messages) == 1
    finally:
        logging.set_verbosity(before)


def test_offline_mode_is_respected(tmp_path):
    """A model, a dataset and a file that only the network has: each ends the recipe with one line that says so."""
    out = ["--tasks", "sst", "--output_dir", str(tmp_path / "run"), "--log_level", "error"]  # or warnings come too
    wanted = {
        "--model_name_or_path": ["google-bert/bert-base-uncased", "--data_dir", "package:bert_multitask/sample"],
        "name a local folder with --data_dir": [MINILM, "--data_dir", "hub"],
        "try `make quickstart`": [MINILM, "--data_dir", "https://hub.invalid/data"],
    }
    code = """
import json
for argv in json.loads(sys.argv[1]):
    sys.argv[1:] = argv
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        assert end.code == 2
"""
    runs = [["--model_name_or_path", *argv, *out] for argv in wanted.values()]
    environ = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    recipe = str(ROOT / "recipes" / "train_multitask.py")
    run = run_offline(code, recipe, json.dumps(runs), **environ)
    assert run.returncode == 0, run.stderr
    for advice, line in zip(wanted, run.stderr.splitlines(), strict=True):
        assert line.startswith("error: ") and advice in line and "offline" in line.lower()
    assert not (tmp_path / "run").exists()


def test_caches_lie_under_hf_home(tmp_path):
    code = """
from bert_multitask import TASKS, load_rows, load_tokenizer, tokenise_splits
tokenise_splits(TASKS["sts"], load_rows(TASKS["sts"], sys.argv[1]), load_tokenizer(sys.argv[0], 30522), 64)
"""
    (tmp_path / "home").mkdir()
    places = {"HF_HOME": str(tmp_path / "hf"), "HOME": str(tmp_path / "home")}
    run = run_offline(code, MINILM, "package:bert_multitask/sample", **places)
    assert run.returncode == 0, run.stderr
    assert len(list((tmp_path / "hf").rglob("*.arrow"))) == 3
    assert not [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_metrics_stand_on_their_own():
    """As `evaluate` metrics do: batch by batch, and combined with others."""
    accuracy, pearson = METRICS["accuracy"](), METRICS["pearson"]()
    predictions, references = [0, 1, 2, 2, 1, 0], [0, 2, 2, 2, 1, 1]
    for start in (0, 2, 4):
        accuracy.add_batch(predictions=predictions[start : start + 2], references=references[start : start + 2])
    assert accuracy.compute() == {"accuracy": accuracy_score(references, predictions)}
    both = evaluate.combine([accuracy, pearson]).compute(predictions=predictions, references=references)
    assert both["accuracy"] == accuracy_score(references, predictions)
    assert both["pearson"] == pytest.approx(pearsonr(predictions, references).statistic)
