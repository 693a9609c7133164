"""YAML files that cannot be read are refused in one line that names the file; none makes the reader hang."""

from pathlib import Path

import pytest

from bert_multitask.model.errors import InputError
from bert_multitask.training.search_space import read_entries
from bert_multitask.training.yaml_file import load_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{number}: &a{number} [{', '.join(9 * [f'*a{number - 1}'])}]\n" for number in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(LAUGHS, r"\*a0 is an alias; write the value of &a0 again", id="nested aliases"),
        pytest.param("a: &a 1\nb: *a", r"\*a is an alias", id="one alias"),
        pytest.param("a: &a {x: 1}\nb: {<<: *a}", r"\*a is an alias", id="a merge"),
        pytest.param("a: &a [*a]", r"\*a is an alias", id="itself"),
        pytest.param("seed: 1\nlr: 2\nseed: 3", "'seed' is given twice", id="a key twice"),
        pytest.param("tasks: [{name: a, name: b}]", "'name' is given twice", id="a key twice, inside"),
        pytest.param("a: " + "[" * 20_000, "nested too deeply", id="deep lists"),
        pytest.param("a: " + "{b: " * 20_000, "nested too deeply", id="deep mappings"),
        pytest.param("a: [", "not a YAML file", id="not closed"),
        pytest.param("a: 2020-13-45", "not a YAML file: month must be in", id="no date"),
        pytest.param("a: !!int x", "not a YAML file: ", id="no number"),
        pytest.param("a: !!bool x", "not a YAML file: ", id="no truth value"),
        pytest.param("a: !!python/object/apply:os.getcwd []", "could not determine a constructor", id="a Python tag"),
        pytest.param("a: \x00", "special characters are not allowed", id="a control character"),
        pytest.param('output_dir: "a\\0b"', "has a NUL character", id="a NUL in a path"),
        pytest.param('"a\\0b": 1', "has a NUL character", id="a NUL in a key"),
        pytest.param('tasks: [{name: "\\0"}]', "has a NUL character", id="a NUL inside"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, content, message):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(InputError, match=r"a\.yaml: (?s:.*)" + message):
        load_yaml(tmp_path / "a.yaml")
    with pytest.raises(InputError, match=r"--search .*a\.yaml: (?s:.*)" + message):
        read_entries(str(tmp_path / "a.yaml"))


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(InputError, match="b.yaml: no such configuration file; the package ships .*, and others in"):
        load_yaml(tmp_path / "b.yaml")
    (tmp_path / "reviews.yaml").touch()
    with pytest.raises(InputError, match="revews.yml: no such configuration file; did you mean .*/reviews.yaml"):
        load_yaml(tmp_path / "revews.yml")
    with pytest.raises(InputError, match=r"did you mean quickstart\.yaml"):
        load_yaml(Path("quikstart.yaml"))
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)
    (tmp_path / "a.yaml").write_bytes(b"a: \xff")
    with pytest.raises(InputError, match="a.yaml: not a YAML file: 'utf-8'"):
        load_yaml(tmp_path / "a.yaml")


def test_equal_keys_of_different_lists_are_fine(tmp_path):
    (tmp_path / "a.yaml").write_text("tasks: [{name: a}, {name: b}]\nname: c\n")
    assert load_yaml(tmp_path / "a.yaml") == {"tasks": [{"name": "a"}, {"name": "b"}], "name": "c"}
