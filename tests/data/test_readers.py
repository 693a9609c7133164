"""Files of rows: what is read right, what is refused with its file and row, and damage of every kind."""

import bz2
import csv
import dataclasses
import errno
import gzip
import io
import json
import lzma
import os
import random
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet

from bert_multitask.data import readers as files
from bert_multitask.data.rows import HANDOUT, clean_rows, find_file, load_rows
from bert_multitask.model.errors import InputError
from bert_multitask.model.tasks import SPLITS, TASKS, Task

TASK = Task(name="a", kind="binary", text="text", label_names=("neg", "pos"))
PLAIN = Task(name="a", kind="binary", text="text", label_names=("neg", "pos"), quoting="none")
HEADER = "id,text,label\n"


def read(path, task: Task = TASK, labelled: bool = True) -> list[dict]:
    """The clean rows of a file."""
    task = dataclasses.replace(task, files={"train": str(path), "dev": str(path)})
    return list(load_rows(task, splits=["dev"], labelled=["dev"] if labelled else [])["dev"])


def read_text(tmp_path, text: str, name: str = "rows.csv", task: Task = TASK) -> list[str]:
    """The texts of a file of this content."""
    path = tmp_path / name
    path.write_bytes(text.encode())
    return [row["text"] for row in read(path, task)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(f'{HEADER}0,ok,1\n1,"hi" now,1\n', r"row 2 \(line 3\) has a stray quote", id="after a quote"),
        pytest.param(f'{HEADER}0,"hi"" now",1\n1,"a"b",1\n', r"row 2 \(line 3\)", id="inside quotes"),
        pytest.param(f'{HEADER}0,"hi" ,1\n', r"row 1 \(line 2\)", id="a space after a quote"),
        pytest.param('id,label,text\n0,1,ok\n1,0,"bad\n2,1,good\n', r"row 2 \(line 3\)", id="unclosed, last column"),
        pytest.param(f'{HEADER}0,"bad,1\n1,good,1\n', r"row 1 \(line 2\)", id="unclosed, middle column"),
        pytest.param(f'{HEADER}0,"bad,1\n1,"good",1\n', r"row 1 \(line 2\)", id="closed by the next quote"),
        pytest.param(f'{HEADER}0,"a\nb",1\n1,"hi" x,1\n', r"row 2 \(line 4\)", id="after a row of two lines"),
        pytest.param('"id"x,text,label\n0,a,1\n', r"the header \(line 1\)", id="in the header"),
        pytest.param(f"{HEADER}0,a,1\n1,b\n", r"row 2 \(line 3\) has 2 fields but the header has 3", id="too few"),
        pytest.param(f"{HEADER}0,a,1,x\n", r"row 1 \(line 2\) has 4 fields but the header has 3", id="too many"),
        pytest.param("id,text,label,text\n0,a,1,b\n", "has several columns called 'text'", id="a column twice"),
        pytest.param("id,text,label,n,n\n0,a,1,b,c\n", "has several columns called 'n'", id="another column twice"),
        pytest.param(f"{HEADER}x,a,1\ny,b,1\nx,c,0\n", "rows 1 and 3 both have the id 'x'", id="an id twice"),
        pytest.param(f"{HEADER}1,a,1\n,b,1\n", "rows 1 and 2 both have the id '1'", id="a number and an id"),
        pytest.param(f'{HEADER}"x\ny",a,1\n', r"row 1 has the id 'x\\ny'; .* one line", id="an id of two lines"),
        pytest.param(f'{HEADER}0,a,1\n\n1,"b" x,1\n', r"row 2 \(line 4\) has a stray quote", id="after a blank line"),
        pytest.param(f"{HEADER}0,a,1\n \n1,b\n", r"row 2 \(line 4\) has 2 fields", id="after a line of white space"),
        pytest.param("\n\n", "is empty", id="blank lines alone"),
    ],
)
def test_tables_are_read_strictly(tmp_path, text, message):
    for name, content in (("rows.csv", text), ("rows.tsv", text.replace(",", "\t"))):
        with pytest.raises(InputError, match=f"{name}: {message}") as error:
            path = tmp_path / name
            path.write_text(content)
            read(path, labelled=False)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("column", ["text", "text,label"])
def test_blank_lines_are_skipped_as_pandas_skips_them(tmp_path, caplog, propagated_logs, column):
    """In one column they might be empty fields, so that a warning counts those between rows."""
    end = ",1" if "," in column else ""
    lines = [column, "", "a" + end, "", "", '""' + end, "b" + end, "", ""]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines))
    expected = pd.read_csv(path, keep_default_na=False)["text"].tolist()
    assert [row["text"] for row in read(path, labelled=False)] == expected == ["a", "", "b"]
    warned = "rows.csv: blank lines are skipped, 3 in all, the first is line 2;" in caplog.text
    assert warned == (column == "text")


def test_lines_of_white_space_are_blank_where_a_row_has_several_fields(tmp_path):
    (tmp_path / "rows.csv").write_text(f"{HEADER}0,a,1\n  \n1,b,1\n \t\n")
    found = [row["text"] for row in read(tmp_path / "rows.csv")]
    assert pd.read_csv(tmp_path / "rows.csv")["text"].tolist() == found == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param(
            "rows.jsonl",
            b'{"text": "a", "label": 1}\n{"text": "a", "text": "b", "label": 1}',
            "line 2 .*the same key twice",
            id="a key twice",
        ),
        pytest.param(
            "rows.jsonl",
            b'{"id": 7, "text": "a", "label": 1}\n\n{"id": "7", "text": "b", "label": 1}',
            "rows 1 and 2 both have the id '7'",
            id="an id twice",
        ),
        pytest.param("rows.jsonl", b'{"text": ["a"], "label": 1}', "row 1 holds .* [(]list", id="a list for a text"),
        pytest.param("rows.jsonl", b'{"text": {"a": 1}, "label": 1}', "row 1 holds .* [(]dict", id="an object"),
        pytest.param("rows.jsonl", b'{"text": "a", "label": [1]}', "row 1: label is .1.;", id="a list for a label"),
        pytest.param("rows.jsonl", b'{"text": "a \\ud83d", "label": 1}', "row 1: .* half of", id="half an emoji"),
        pytest.param("rows.jsonl", b'{"text": "a", "label": 1}\n{"te', "line 2 is not JSON", id="a torn last line"),
        pytest.param("rows.jsonl", b"[" * 100_000, "line 1 is not JSON: .*recursion", id="nested deeply"),
        pytest.param("rows.jsonl", b'{"a":' * 100_000, "line 1 is not JSON: .*recursion", id="objects nested deeply"),
        pytest.param("rows.jsonl", b'{"text": "\xff", "label": 1}', "line 1 is not JSON", id="not UTF-8"),
        pytest.param("rows.csv", HEADER.encode() + b"0,a,1\n1,\xe9,1\n", "line 3 is not UTF-8", id="Latin-1"),
        pytest.param(
            "rows.csv", HEADER.encode() + b"0,a,1\n" * 5000 + b"1,\xff,1\n", "line 5002 is not UTF-8|rows 1 and 2",
            id="not UTF-8, far below",
        ),
        pytest.param("rows.csv", f"{HEADER}0,a,1\n".encode("utf-16"), "is UTF-16 .*iconv", id="UTF-16"),
        pytest.param("rows.tsv", f"{HEADER}0,a,1\n".encode("utf-16-be"), "is UTF-16", id="UTF-16 without a mark"),
        pytest.param("rows.jsonl", '{"text": "a"}'.encode("utf-16-le"), "is UTF-16", id="UTF-16 of JSON"),
        pytest.param("rows.parquet", b"", "cannot be read as Parquet", id="empty Parquet"),
        pytest.param("rows.parquet", b"not Parquet at all", "cannot be read as Parquet", id="no Parquet"),
        pytest.param("rows.csv.gz", b"id,text,label\n0,a,1\n", "cannot be read as a table", id="not compressed"),
        pytest.param(
            "rows.csv.gz", gzip.compress(HEADER.encode() * 99)[:-20], "cannot be read as a table", id="cut gzip"
        ),
        pytest.param("rows.csv.bz2", b"BZh9garbage", "cannot be read as a table", id="damaged bzip2"),
        pytest.param("rows.jsonl.xz", lzma.compress(b"{}" * 99)[:-9], "cannot be read as JSON lines", id="cut xz"),
        pytest.param("rows.zip", b"PK", "reads files that end in .*[.]xz", id="another compression"),
        pytest.param("rows.xlsx", b"PK", "reads files that end in .*[.]parquet", id="another form"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}[:,] .*({message})|{name}[:,] {message}") as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def parquet_bytes(table: pa.Table, **settings) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(table, sink, **settings)
    return sink.getvalue()


ROWS = pa.table({"id": ["x", "y"], "text": ["good film", "bad film"], "label": [1, 0]})
NESTED = pa.array([{"a": "x"}, {"a": "y"}])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(parquet_bytes(ROWS)[:-30], "cannot be read as Parquet", id="cut"),
        pytest.param(parquet_bytes(ROWS)[:40], "cannot be read as Parquet", id="only its beginning"),
        pytest.param(
            parquet_bytes(ROWS, write_page_checksum=True, compression="none").replace(b"good film", b"evil film"),
            "cannot be read as Parquet .*(CRC|checksum)",
            id="an altered page",
        ),
        pytest.param(
            parquet_bytes(ROWS, compression="none", use_dictionary=False).replace(b"good film", b"\xff" * 9),
            "cannot be read as Parquet .*utf-8",
            id="a text that is not UTF-8",
        ),
        pytest.param(
            parquet_bytes(pa.Table.from_arrays([ROWS["text"], ROWS["text"], ROWS["label"]], ["text", "text", "label"])),
            "has several columns called 'text'",
            id="a column twice",
        ),
        pytest.param(parquet_bytes(ROWS.set_column(0, "id", [["x", "x"]])), "rows 1 and 2 both", id="an id twice"),
        pytest.param(parquet_bytes(ROWS.set_column(1, "text", [NESTED])), "row 1 holds .* [(]dict", id="a structure"),
        pytest.param(parquet_bytes(ROWS.set_column(1, "text", [[b"a", b"b"]])), "row 1 .* [(]bytes", id="bytes"),
        pytest.param(parquet_bytes(ROWS.drop_columns("text")), "row 1: no column 'text'", id="no such column"),
    ],
)
def test_damaged_parquet_is_refused(tmp_path, content, message):
    (tmp_path / "rows.parquet").write_bytes(content)
    with pytest.raises(InputError, match=f"rows.parquet[:,] {message}"):
        read(tmp_path / "rows.parquet")


def test_nested_columns_that_no_task_needs_are_no_matter(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(parquet_bytes(ROWS.append_column("more", NESTED)))
    assert [row["text"] for row in read(tmp_path / "rows.parquet")] == ["good film", "bad film"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "rows.csv.gz"])
def test_files_that_cannot_be_opened_or_read_on(tmp_path, monkeypatch, name):
    """Tests may run as root, who may read everything: errors are simulated where they cannot be made."""
    path = tmp_path / name
    path.mkdir()
    with pytest.raises(InputError, match=f"{name}: cannot be read: Is a directory"):
        read(path)
    path.rmdir()
    path.write_bytes(bytes(100))

    class Broken(io.BufferedReader):
        def __init__(self, local, mode):
            if self.number == errno.EACCES:
                self.fail()
            super().__init__(io.FileIO(local))

        def fail(self, *args):
            raise OSError(self.number, os.strerror(self.number))

        peek = read = readline = read1 = readinto = fail

    monkeypatch.setitem(files.COMPRESSIONS, ".gz", Broken)
    monkeypatch.setattr(files, "open", Broken, raising=False)
    for Broken.number, message in ((errno.EIO, "Input/output error"), (errno.EACCES, "Permission denied")):
        with pytest.raises(InputError, match=f"{name}: cannot be read: {message}"):
            read(path)


def test_a_read_error_in_mid_file_is_named(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_text(HEADER + "".join(f"{number},a text,1\n" for number in range(100_000)))

    class Broken(io.BufferedReader):
        def read1(self, size=-1):
            if self.tell() > 500_000:
                raise OSError(errno.EIO, "Input/output error")
            return super().read1(size)

    monkeypatch.setattr(files, "open", lambda local, mode: Broken(io.FileIO(local)), raising=False)
    with pytest.raises(InputError, match="rows.csv: cannot be read: Input/output error"):
        read(path)


def test_quoted_texts_of_several_lines_are_read_and_pointed_out_once(tmp_path, caplog, propagated_logs):
    texts = ["one", "two\nlines", 'a "quote"\r\nand, more', "four", "x\n\n\ny"]
    with open(tmp_path / "rows.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *([text, 1] for text in texts)])
    assert [row["text"] for row in read(tmp_path / "rows.csv")] == texts
    assert len(caplog.messages) == 1 and "3 rows span several lines, the first is row 2" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("0,,id,text,label\n1,2,a,b,1\n", ["b"], id="the course's index columns"),
        pytest.param(",,text,label\n1,2,b,1\n", ["b"], id="two blank names"),
        pytest.param("\ufefftext,label\nb,1\n", ["b"], id="a byte order mark"),
        pytest.param("text,label\r\na,1\r\nb,0\r\n", ["a", "b"], id="CRLF"),
        pytest.param("text,label\na,1\nb,0", ["a", "b"], id="no last line feed"),
        pytest.param("text,label\n\na,1\n\n\nb,0\n\n", ["a", "b"], id="blank lines"),
        pytest.param('text,label\n"",1\na,1\n', ["", "a"], id="an empty quoted field"),
        pytest.param("text,label\na\0b,1\n", ["a\0b"], id="a NUL"),
        pytest.param('text,label\n5" disk,1\nsay ""x"",0\n', ['5" disk', 'say ""x""'], id="quotes within a field"),
        pytest.param("text,label\n\x85\u2028\x0b\x1c,1\n", ["\x85\u2028\x0b\x1c"], id="other line separators"),
        pytest.param("id,text,label\n1" + "0" * 30 + ",a,1\n", ["a"], id="a long id"),
    ],
)
def test_what_is_right_is_read_right(tmp_path, caplog, propagated_logs, text, expected):
    assert read_text(tmp_path, text) == expected and not caplog.messages


def test_fields_of_any_length(tmp_path):
    long = "word " * 60_000
    assert read_text(tmp_path, f"text,label\n{long},1\n") == [long]


def test_plain_quotes(tmp_path):
    """GLUE's own files do not quote: half of these rows would be lost, or refused."""
    texts = ['"hi" now', '"unclosed', 'closed"', '"whole"', "it's", '""']
    table = "text\tlabel\n" + "".join(f"{text}\t1\n" for text in texts)
    assert read_text(tmp_path, table, "rows.tsv", PLAIN) == texts
    with pytest.raises(InputError, match=r"row 1 \(line 2\) .*quoting: none"):
        read_text(tmp_path, table, "rows.tsv")
    with pytest.raises(InputError, match=r"row 1 \(line 2\) has 3 fields"):
        read_text(tmp_path, 'text\tlabel\n"a\tb"\t1\n', "rows.tsv", PLAIN)
    with pytest.raises(InputError, match="quoting is 'all'; expected one of standard, none"):
        Task(name="a", kind="binary", label_names=("n", "y"), quoting="all")
    assert "quoting" not in PLAIN.to_config(), "a model does not need it"


@pytest.mark.parametrize("opener", [gzip.open, bz2.open, lzma.open], ids=["gz", "bz2", "xz"])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_compressed_files(tmp_path, opener, form):
    suffix = {gzip.open: "gz", bz2.open: "bz2", lzma.open: "XZ"}[opener]
    content = {
        "csv": b"text,label\na b,1\n",
        "tsv": b"text\tlabel\na b\t1\n",
        "jsonl": b'{"text": "a b", "label": 1}\n',
        "parquet": parquet_bytes(pa.table({"text": ["a b"], "label": [1]})),
    }[form]
    with opener(tmp_path / f"rows.{form}.{suffix}", "wb") as file:
        file.write(content)
    assert read(tmp_path / f"rows.{form}.{suffix}") == [{"id": "0", "text": "a b", "label": 1}]


def test_names_that_look_like_addresses(tmp_path):
    """A local name is taken as it is: only an address has a query."""
    assert read_text(tmp_path, "text,label\na,1\n", "rows#1?x.csv") == ["a"]


@pytest.mark.parametrize("value", [None, float("nan"), ""], ids=["null", "NaN", "empty"])
def test_a_missing_id_or_text_is_the_same_in_every_form(tmp_path, value):
    frame = pd.DataFrame({"id": ["x", value], "text": ["a", value], "label": [1, 0]})
    expected = [("x", "a"), ("1", "")]
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.astype(object).to_parquet(tmp_path / "rows.parquet")
    lines = [{"id": "x", "text": "a", "label": 1}, {"id": value, "text": value, "label": 0}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for form in ("csv", "parquet", "jsonl"):
        assert [(row["id"], row["text"]) for row in read(tmp_path / f"rows.{form}")] == expected, form


def test_a_task_names_its_column_of_ids(tmp_path):
    rows = [{"article": "x", "id": 7, "text": "a", "label": 1}, {"article": "y", "id": 7, "text": "b", "label": 0}]
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    pd.DataFrame(rows).to_parquet(tmp_path / "rows.parquet")
    for name in ("rows.csv", "rows.parquet"):
        task = Task("a", "binary", "text", label_names=("n", "y"), id="article", files={"train": name, "dev": name})
        assert load_rows(task, str(tmp_path))["dev"]["id"][:] == ["x", "y"]
    assert clean_rows(task, rows)["id"][:] == clean_rows(task, Dataset.from_list(rows))["id"][:] == ["x", "y"]
    assert "id" not in task.to_config(), "the model does not need it"
    (tmp_path / "rows.csv").write_text("id,text,label\n1,a,1\n")
    with pytest.raises(InputError, match="rows.csv, row 1: no column 'article'"):
        load_rows(dataclasses.replace(task, files={"train": "rows.csv", "dev": "rows.csv"}), str(tmp_path))
    with pytest.raises(InputError, match="no column 'article'"):
        clean_rows(task, [{"text": "a", "label": 1}])


def test_a_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.csv").write_text("text,label\na,1\n")
    for folder, name in (("~", "rows.csv"), ("/none", "~/rows.csv")):
        task = Task(name="a", kind="binary", text="text", label_names=("n", "y"), files={"train": name, "dev": name})
        assert load_rows(task, folder)["dev"]["text"][:] == ["a"]


def test_without_a_data_folder_only_the_courses_files_are_fetched(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text,label\na,1\n")
    monkeypatch.chdir(tmp_path)
    own = Task(name="a", kind="binary", text="text", label_names=("n", "y"), files=dict.fromkeys(SPLITS, "rows.csv"))
    assert load_rows(own)["dev"]["text"][:] == ["a"]
    with pytest.raises(InputError, match="none.csv: no such file; task 'a'"):
        load_rows(dataclasses.replace(own, files={"train": "none.csv", "dev": "none.csv"}))
    assert find_file(TASKS["sst"].files["train"], HANDOUT).startswith("https://")


def test_files_of_the_hub(hub, monkeypatch):
    """Any address that the Hub's client knows, also as the data folder."""
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub.endpoint)
    hub.add(
        "me/rows", {"train.csv": b"text,label\nhi,1\n", "dev.csv.gz": gzip.compress(b"text,label\nho,0\n")}, "dataset"
    )
    task = Task(
        name="a", kind="binary", text="text", label_names=("n", "y"), files={"train": "train.csv", "dev": "dev.csv.gz"}
    )
    rows = load_rows(task, "hf://datasets/me/rows")
    assert rows["train"]["text"][:] == ["hi"] and rows["dev"]["text"][:] == ["ho"]
    assert read("hf://datasets/me/rows@main/train.csv")[0]["text"] == "hi"
    for path in ("hf://datasets/me/rows/none.csv", "hf://datasets/me/none/train.csv"):
        with pytest.raises(InputError, match=f"{path}: cannot be fetched") as error:
            read(path)
        assert "\n" not in str(error.value)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """The content with one to three changes: a byte, some bytes left out, some inserted, a part twice, or its end."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place, length = rng.randrange(len(content) + 1), rng.randint(1, 8)
        change = rng.choice(["byte", "remove", "insert", "repeat", "cut"])
        if change == "byte" and place < len(content):
            content[place] = rng.choice(b'",\t\n\r\\{}[]:0\xff\x00\xc3') if rng.random() < 0.5 else rng.randrange(256)
        elif change == "remove":
            del content[place : place + length]
        elif change == "insert":
            content[place:place] = bytes(rng.choice(b'",\t\n\r\\{}[]:0\xff\x00a') for _ in range(length))
        elif change == "repeat":
            content[place:place] = content[max(0, place - 5 * length) : place]
        elif change == "cut" and place:
            del content[place:]
    return bytes(content)


def as_python_reads(content: bytes, form: str) -> list[str]:
    """The texts of a file by other code than ours."""
    if form == "jsonl":
        return [str(json.loads(line)["text"]) for line in content.decode("utf-8-sig").split("\n") if line.strip()]
    text = content.decode("utf-8-sig")
    lines = io.StringIO(text, newline="")
    return [row["text"] for row in csv.DictReader(lines, delimiter="\t" if form == "tsv" else ",", strict=True)]


TEXTS = ["good film", 'a "quoted" one', "two\nlines", "ÄÖ ’", "", "comma, tab\t", "NA", "🎉"]


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_mutated_files_are_refused_or_read_right(tmp_path, form):
    """Nothing but an InputError or the rows that are there, as Python's own readers find them; of Parquet, whose pages
    carry checksums here, the rows that were written."""
    rng = random.Random(15)
    rows = [{"id": f"x{number}", "text": text, "label": number % 2} for number, text in enumerate(TEXTS)]
    if form == "parquet":
        content = parquet_bytes(pa.Table.from_pylist(rows), write_page_checksum=True)
    elif form == "jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    else:
        sink = io.StringIO(newline="")
        writer = csv.DictWriter(sink, rows[0], delimiter="\t" if form == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        content = sink.getvalue().encode()
    path = Path(tmp_path, f"rows.{form}")
    outcomes = {"refused": 0, "read": 0}
    for _ in range(300):
        changed = mutate(content, rng)
        path.write_bytes(changed)
        try:
            found = [row["text"] for row in read(path)]
        except InputError as error:
            assert f"rows.{form}" in str(error)
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        assert found == (TEXTS[: len(found)] if form == "parquet" else as_python_reads(changed, form)), changed
    assert min(outcomes.values()) > 0, outcomes
