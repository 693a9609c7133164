"""The shape of the project: who may import whom, where tasks are named, how long a function is."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "bert_multitask"
# From the bottom up: a module imports only modules of earlier lines.
LAYERS = [
    {"configuration"},
    {"fields", "yaml_file"},
    {"tasks", "losses", "packing"},
    {"modeling", "schedule", "smart", "optim", "finite", "flags", "labels", "card"},
    {"files"},
    {"heads", "collate", "metrics"},
    {"data", "callbacks", "classifier", "statistics", "document", "token_rows"},
    {"arguments", "prediction", "export", "hub"},
    {"checks"},
    {"run_folder", "trainer", "analysis", "search_space", "command_line"},
    {"training", "inference", "soup", "plots"},
    {"ensemble", "sources", "tuning"},
    {"report"},
]
MODEL_FILES = {"configuration", "fields", "tasks", "losses", "packing", "modeling", "card", "heads", "classifier"}


def imports(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    return {node.module for node in nodes}


def test_every_module_has_a_layer():
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set().union(*LAYERS)


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_arrows_point_down(layer):
    below = set().union(*LAYERS[:layer])
    for module in LAYERS[layer]:
        assert imports(module) <= below, module


def test_a_checkpoint_can_carry_the_model_files():
    """Transformers copies flat siblings reached by `from .x import y`, and nothing else."""
    for module in MODEL_FILES:
        assert imports(module) <= MODEL_FILES, module
        assert "bert_multitask" not in imports_of_packages(module), module


def imports_of_packages(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names}


def test_only_tasks_knows_a_task_by_name():
    for path in [*PACKAGE.glob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        if path.stem not in ("tasks", "make_sample", "paper_tables"):  # what the paper's tables are of
            assert not re.search(r"[!=]= *[\"'](sst|quora|sts|cfimdb)[\"']", path.read_text()), path


def body_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    start = function.body[0].end_lineno + 1 if ast.get_docstring(function) else function.body[0].lineno
    return function.end_lineno - start + 1


def test_functions_fit_a_screen():
    """A limit of lines a file made classes that existed only to be short; a function is what one reads at a time."""
    checked = 0
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                checked += 1
                assert body_lines(node) <= 40, f"{path.name}: {node.name}"
    assert checked > 300


def test_every_public_function_says_what_it_does():
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith(("_", "on_", "encode")):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_importing_the_package_loads_no_torch():
    code = "import sys, bert_multitask; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    import bert_multitask

    for name in bert_multitask.__all__:
        assert getattr(bert_multitask, name) is not None
    assert set(bert_multitask.__all__) <= set(dir(bert_multitask))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = bert_multitask.no_such_name
