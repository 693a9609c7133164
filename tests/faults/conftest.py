"""The options of the faults, the folder of their results, and the summary that docs/reliability.md quotes."""

import hashlib
import json
from pathlib import Path

import pytest
from conftest import ROOT

from faults import forks, runs

# Option -> (default, help). `make faults ARGS='--kills 300 --seed 1'`
OPTIONS = {
    "kills": (64, "SIGKILLs, over all layouts"),
    "torn": (40, "checkpoints torn by hand, over both ways to share an encoder"),
    "inputs": (100_000, "mutated inputs, over all readers"),
    "disks": (8, "disks that are too small, each by another amount"),
    "soak": (1800, "seconds of the soak"),
    "soak_bound": (1.0, "MiB per 1,000 steps by which the soak's memory may grow"),
    "seed": (0, "of everything that is drawn"),
    "number": (-1, "the one input to judge again, with -k and its reader, and to show"),
    "faults_folder": ("", "where runs and results are kept, so that a later call goes on; by default a temporary one"),
}
RESULTS = pytest.StashKey[list]()


def pytest_addoption(parser):
    group = parser.getgroup("faults")
    for name, (default, words) in OPTIONS.items():
        group.addoption(f"--{name}", type=type(default), default=default, help=f"{words} ({default})")


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.faults)


def pytest_configure(config):
    config.stash[RESULTS] = []


def pytest_terminal_summary(terminalreporter, config):
    """Print every result as a row of a table; those of docs/reliability.md have these numbers."""
    if rows := config.stash.get(RESULTS, []):
        terminalreporter.section("faults")
        terminalreporter.write_line("| what was tried | how often | what was lost |\n|---|---|---|")
        for row in rows:
            terminalreporter.write_line("| " + " | ".join(row) + " |")


@pytest.fixture(scope="session")
def option(pytestconfig):
    """The value of one of OPTIONS, by name."""
    return lambda name: pytestconfig.getoption(name, default=OPTIONS[name][0])


@pytest.fixture(scope="session")
def seed(option) -> int:
    return option("seed")


@pytest.fixture(scope="session")
def result(pytestconfig):
    """Call it with a row of the summary: what was tried, how often, what was lost."""
    return lambda *row: pytestconfig.stash[RESULTS].append([str(cell) for cell in row])


@pytest.fixture(scope="session")
def work(option, tmp_path_factory) -> Path:
    """The folder of runs and results. One that is there already must be of this code and seed."""
    folder = Path(option("faults_folder") or tmp_path_factory.mktemp("faults")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted([*(ROOT / "bert_multitask").rglob("*.py"), *Path(__file__).parent.glob("*.py")])
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    settings, file = {"code": code, "seed": option("seed")}, folder / "settings.json"
    if file.exists() and json.loads(file.read_text()) != settings:
        pytest.exit(f"--faults_folder {folder} holds results of other code or another seed; choose another folder", 4)
    file.write_text(json.dumps(settings))
    forks.isolate(folder / "cache")
    return folder


@pytest.fixture(scope="session")
def stage(work) -> "runs.Stage":
    """A checkpoint to start from, a folder of rows, and the uninterrupted run of each layout."""
    return runs.Stage(work)


class Journal:
    """Results as JSON lines in a file: what a stopped call has done is not done again."""

    def __init__(self, path: Path):
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.entries = [json.loads(line) for line in lines]

    def add(self, **entry) -> None:
        self.entries.append(entry)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


@pytest.fixture
def journal(work, request) -> Journal:
    """The journal of a test, named like it."""
    name = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]")
    return Journal(work / f"{name}.jsonl")
