"""The shape of the project: who may import whom, where tasks are named, how long a function is."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from bert_multitask.model.kinds import ALIASES, KINDS

PACKAGE = ROOT / "bert_multitask"
# From the bottom up: a package imports only packages of earlier places.
PACKAGES = ("model", "data", "evaluation", "training", "inference", "reporting", "commands")


def imports(path: Path) -> set[str]:
    """The packages of this project that a module imports from, "" its own."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.level]
    return {"" if node.level == 1 else (node.module or "").partition(".")[0] for node in nodes}


def test_every_module_is_in_a_package():
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "__main__.py"]
    assert {path.parent.name for path in PACKAGE.glob("*/*.py")} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_point_down(package):
    modules = list(PACKAGE.glob(f"{package}/*.py"))
    assert modules
    for path in modules:
        assert imports(path) <= {"", *PACKAGES[: PACKAGES.index(package)]}, path


def test_a_checkpoint_can_carry_the_model():
    """Transformers copies flat siblings reached by `from .x import y`, and nothing else."""
    for path in PACKAGE.glob("model/*.py"):
        assert imports(path) <= {""}, path
        tree = ast.parse(path.read_text())
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
        assert "bert_multitask" not in {name.partition(".")[0] for name in names}, path


def test_only_tasks_knows_a_task_by_name():
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]:
        if path.stem not in ("tasks", "make_sample") and path.parent.name != "paper":  # whose tables name them
            assert not re.search(r"[!=]= *[\"'](sst|quora|sts|cfimdb)[\"']", path.read_text()), path


def compared_kinds(source: str) -> list[str]:
    """The comparisons of a task's kind in some code: of an attribute `kind`, but of NumPy's dtypes and the benchmark's
    settings, or with the name of a kind."""
    names = {*KINDS, *ALIASES}
    found = []
    for node in ast.walk(ast.parse(source)):
        parts = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        parts += [node.subject, *(case.pattern for case in node.cases)] if isinstance(node, ast.Match) else []
        for part in parts:
            other = isinstance(part, ast.Attribute) and ast.unparse(part.value).split(".")[-1] in ("dtype", "setting")
            if isinstance(part, ast.Attribute) and part.attr == "kind" and not other:
                found.append(ast.unparse(part))
            constants = [inner.value for inner in ast.walk(part) if isinstance(inner, ast.Constant)]
            found += [value for value in constants if value in names]
    return found


@pytest.mark.parametrize(
    "planted",
    [
        "if task.kind == 'similarity': pass",
        "x = 1 if spec.kind in KIND_NAMES else 2",
        "kind = task.kind\nif kind != 'binary': pass",
        "match part.task.kind:\n    case 'regression': pass",
        "y = [t for t in tasks if t.kind not in ('classification',)]",
    ],
)
def test_a_planted_comparison_of_kinds_is_found(planted):
    assert compared_kinds(planted)


def test_only_kinds_knows_a_kind_by_name():
    paths = [*PACKAGE.rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]
    assert len(paths) > 60
    for path in paths:
        if path != PACKAGE / "model" / "kinds.py":
            # A task's own rule: is its kind one of the table's?
            found = [
                part for part in compared_kinds(path.read_text()) if (path.name, part) != ("tasks.py", "self.kind")
            ]
            assert not found, f"{path}: {found}"


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


def overrides(tree: ast.Module) -> set[ast.AST]:
    """The methods that inherit a docstring from a class of the same file, and forms of a method for type checkers."""
    found, documented = set(), {}
    for node in [node for node in tree.body if isinstance(node, ast.ClassDef)]:  # a base stands before its subclasses
        inherited = set().union(*(documented.get(ast.unparse(base), ()) for base in node.bases))
        methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
        found |= {method for method in methods if method.name in inherited}
        found |= {method for method in methods if "overload" in map(ast.unparse, method.decorator_list)}
        documented[node.name] = inherited | {method.name for method in methods if ast.get_docstring(method)}
    return found


def test_every_public_function_says_what_it_does():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in set(ast.walk(tree)) - overrides(tree):
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
