"""The demo: what its tabs, its HTTP endpoint and a browser show is what the pipeline answers."""

import importlib.util
import json
import re
import socket

import pytest
import torch
from browser import CHROMIUM, Browser
from conftest import ROOT, run_here

from bert_multitask.inference.demo_page import Tab, build_page, find_examples, launch_options
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.inference.trained_run import Place
from bert_multitask.model.errors import InputError
from bert_multitask.model.kinds import KINDS, Regression
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS

gr = pytest.importorskip("gradio", reason="the demo needs the extra `demo`")
gradio_client = pytest.importorskip("gradio_client")

TASKS_HERE = [
    "sst",
    "quora",
    "sts",
    {"name": "topics", "kind": "multilabel", "label_names": ["cooking", "sport", "the weather in the north"]},
    {"name": "price", "kind": "regression"},
    {"name": "tags", "kind": "token_classification", "label_names": ["O", "B-PER", "I-PER"]},
]
TEXT, OTHER = "Anna says that the plot is superb, and the ending tedious.", "The plot is superb."


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_bert, tokenizer) -> dict[str, str]:
    """Two runs with the same tasks, but that the second has fewer."""
    folders = {}
    for number, title in enumerate(("first", "second")):
        torch.manual_seed(number)
        model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=TASKS_HERE[: 6 - 2 * number])
        with torch.no_grad():
            for head in model.heads.values():  # else every answer is nearly the same
                for weight in head.parameters():
                    torch.nn.init.normal_(weight, std=0.5)
        folder = tmp_path_factory.mktemp(title)
        model.save_pretrained(folder), tokenizer.save_pretrained(folder)
        folders[title] = str(folder)
    return folders


@pytest.fixture(scope="module")
def pipes(runs) -> dict[str, MultitaskPipeline]:
    return {title: MultitaskPipeline(folder) for title, folder in runs.items()}


@pytest.fixture(scope="module")
def url(runs):
    """The page of both runs, on a free port of loopback."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page = build_page(runs)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_port=port, **launch_options())
    yield address
    page.close(verbose=False)


@pytest.fixture(scope="module")
def client(url):
    return gradio_client.Client(url, verbose=False)


def numbers(answer) -> list[float]:
    """All numbers of an answer, in their order."""
    if isinstance(answer, dict):
        answer = list(answer.values())
    if isinstance(answer, list):
        return [number for part in answer for number in numbers(part)]
    return [answer] if isinstance(answer, (int, float)) else []


def words(answer) -> object:
    """An answer without its numbers, which rounding may change."""
    return re.sub(r"-?\d+\.\d+(e-?\d+)?", "x", json.dumps(answer))


def same(answer, expected) -> bool:
    return words(answer) == words(expected) and numbers(answer) == pytest.approx(numbers(expected), abs=1e-6)


@pytest.mark.parametrize("task", ["sst", "quora", "sts", "topics", "price", "tags"])
def test_tabs_answer_as_the_pipeline(pipes, task):
    having = {title: pipe for title, pipe in pipes.items() if task in pipe.tasks}
    assert len(having) == (1 if task in ("price", "tags") else 2)
    texts = (TEXT, OTHER) if TASKS.get(task) and TASKS[task].text_pair else (TEXT,)
    shown = Tab(having, task).answer(*texts)
    each = len(shown) // len(having)
    for number, pipe in enumerate(having.values()):
        value, *explained, answer = shown[number * each : (number + 1) * each]
        expected = pipe(task, texts if len(texts) == 2 else TEXT)
        assert same(answer, expected)
        if "score" in expected:
            assert value == pytest.approx(expected["score"], rel=1e-3)
        elif task == "tags":
            assert value == [
                (f"{word} ", None if tag == "O" else tag)
                for word, tag in zip(TEXT.split(), expected["label"], strict=True)
            ]
        else:
            assert value == pytest.approx(expected["probabilities"], abs=1e-6)
        assert len(explained) == len(texts)
        for pieces, text in zip(explained, texts, strict=True):
            assert (pieces is None) == (task == "tags")
            assert pieces is None or "".join(word for word, _ in pieces) == text
        strengths = [abs(number) for pieces in explained if pieces for _, number in pieces]
        assert task == "tags" or max(strengths) == 1


def test_all_tasks_from_one_pass(pipes):
    shown = Tab(pipes).answer(TEXT)
    assert len(shown) == (4 + 1) + (2 + 1)
    assert same(shown[4], pipes["first"].all(TEXT)) and same(shown[7], pipes["second"].all(TEXT))
    assert list(shown[4]) == ["sst", "topics", "price", "tags"] and list(shown[7]) == ["sst", "topics"]


def test_boxes_that_are_refused(pipes):
    for texts, words_of in (
        (("",), "Write a text"),
        ((" \n",), "Write a text"),
        (("a" * 20_001,), "20,001 characters"),
    ):
        with pytest.raises(InputError, match=words_of):
            Tab(pipes, "sst").answer(*texts)
    with pytest.raises(InputError, match="Write both texts"):
        Tab(pipes, "sts").answer("a text", "")


def test_the_page_over_http(client, pipes):
    for task, texts in (("sst", [TEXT]), ("sts", [TEXT, OTHER])):
        note, *shown = client.predict(*texts, api_name=f"/task_{task}")
        each = len(shown) // 2
        assert note == ""
        for number, pipe in enumerate(pipes.values()):
            assert same(shown[(number + 1) * each - 1], pipe(task, tuple(texts) if len(texts) == 2 else TEXT))
    bars = client.predict(TEXT, api_name="/task_sst")[1]["confidences"]
    expected = pipes["first"]("sst", TEXT)["probabilities"]
    assert {bar["label"]: bar["confidence"] for bar in bars} == pytest.approx(expected, abs=1e-6)
    note, *shown = client.predict(" ", api_name="/task_sst")
    assert note == "Write a text, then press the button." and not numbers(shown)
    assert same(client.predict(TEXT, api_name="/all_tasks")[-1], pipes["second"].all(TEXT))


def test_the_endpoint_answers_rows(client, pipes):
    texts = [TEXT, OTHER, "dull"]
    assert same(client.predict("sst", texts, api_name="/answer"), pipes["first"]("sst", texts))
    pairs = [[TEXT, OTHER], {"text": OTHER, "text_pair": TEXT}]
    assert same(client.predict("quora", pairs, api_name="/answer"), pipes["first"]("quora", pairs))
    for task, rows, words_of in (
        ("nli", texts, "no task 'nli'; it has sst, quora"),
        ("sst", TEXT, "expected a list of at most 1,000 rows"),
        ("sst", ["a"] * 1001, "expected a list of at most 1,000 rows"),
        ("sst", ["a", 7], r"rows\[1\] is 7; task 'sst' takes a text"),
        ("quora", ["ab"], r"rows\[0\] is 'ab'; task 'quora' takes a pair"),
        ("sst", ["a" * 20_001], "20,001 characters"),
    ):
        with pytest.raises(gradio_client.exceptions.AppError, match=words_of):
            client.predict(task, rows, api_name="/answer")


def example(name: str) -> str:
    """The block of docs/serve.md that imports a package."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serve.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if f"from {name} import" in block)
    return block


def test_the_client_of_the_docs(url, pipes):
    names: dict = {}
    exec(example("gradio_client").replace("http://127.0.0.1:7860", url), names)
    assert same(names["answers"], pipes["first"]("sst", ["The plot is superb.", "The ending was dull."]))
    assert same(names["scores"], [pipes["first"]("sts", ("A dog sleeps.", "A hound is taking a nap."))])


def test_the_server_of_the_docs(runs, pipes):
    from fastapi.testclient import TestClient

    names = {"__name__": "server"}
    exec(example("fastapi").replace("runs/quickstart", runs["first"]), names)
    server = TestClient(names["app"])

    def post(task: str, rows: object) -> tuple[int, object]:
        response = server.post("/answer", json={"task": task, "rows": rows})
        return response.status_code, response.json()

    assert post("sst", [TEXT, OTHER])[0] == 200
    assert same(post("sst", [TEXT, OTHER])[1], pipes["first"]("sst", [TEXT, OTHER]))
    assert same(post("sts", [[TEXT, OTHER]])[1], [pipes["first"]("sts", (TEXT, OTHER))])
    for task, rows, words_of in (
        ("sst", TEXT, "valid list"),
        ("sst", [7], "valid string"),
        ("sst", [""], "at least 1 character"),
        ("sst", ["a" * 20_001], "at most 20000 characters"),
        ("sst", ["a"] * 1001, "at most 1000 items"),
        ("sst", [[TEXT, OTHER]], "task 'sst' takes a text"),
        ("sts", [TEXT], "task 'sts' takes a pair"),
        ("nli", [TEXT], "no task 'nli'"),
    ):
        status, answer = post(task, rows)
        assert status == 422 and words_of in str(answer["detail"]), answer
    assert server.post("/answer", content=b"{").status_code == 422


def test_a_kind_of_ones_own_is_shown_as_json(monkeypatch, tiny_bert, tokenizer, pipes):
    """A kind that says nothing of the demo has a tab all the same."""

    class Plain(Regression):
        view = None

        def evidence(self, task, logits):
            return None

    monkeypatch.setitem(KINDS, "plain", Plain())
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[{"name": "own", "kind": "plain"}])
    pipe = MultitaskPipeline(model, tokenizer)
    tab = Tab({"own": pipe}, "own")
    assert tab.answer(TEXT) == [pipe("own", TEXT), None, pipe("own", TEXT)]
    with gr.Blocks():
        tab.build([])


def test_runs_that_cannot_stand_side_by_side(monkeypatch, tmp_path, runs, tiny_bert, tokenizer):
    task = {"name": "sst", "kind": "regression", "text_pair": "other"}
    MultitaskBertModel.from_pretrained(tiny_bert, tasks=[task]).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="task 'sst' takes a text in one run and a pair in the other"):
        build_page({"first": runs["first"], "pairs": str(tmp_path)})


def test_examples_are_dev_rows(monkeypatch, pipes, course_folder):
    places = pipes["first"].run.records.places
    monkeypatch.setitem(places, "sts", Place(TASKS["sts"], str(course_folder)))
    dev = (course_folder / "sts-dev.csv").read_text()
    found = find_examples(pipes["first"], "sts")
    assert found and all(len(row) == 2 and all(text in dev for text in row) for row in found)
    assert find_examples(pipes["first"], "sst") == [] == find_examples(pipes["second"], "price")
    monkeypatch.setitem(places, "sts", Place(TASKS["sts"], "/nowhere"))
    assert find_examples(pipes["first"], "sts") == []


def test_the_command(monkeypatch, capsys, runs):
    served = []
    monkeypatch.setattr(gr.Blocks, "launch", lambda page, **options: served.append(page))
    first, second = runs.values()
    assert run_here(monkeypatch, first, second, recipe="demo") == 0
    assert served[0].title == " and ".join(folder.rsplit("/")[-1] for folder in (first, second))
    assert run_here(monkeypatch, *[first] * 3, recipe="demo") == 2
    assert "3 runs; the page has room for two" in capsys.readouterr().err
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gradio" else find(name))
    assert run_here(monkeypatch, first, recipe="demo") == 2
    assert capsys.readouterr().err.startswith("error: the demo needs gradio: pip install '.[demo]' in ")


SHOWN = "[...document.querySelectorAll('{}')].filter(element => element.offsetParent)"


def ask(browser: Browser, task: str, texts: list[str]) -> None:
    """Choose a tab, fill its boxes and press its button."""
    tab = f"{SHOWN.format('button[role=tab]')}.find(tab => tab.innerText.trim() == {json.dumps(task)})"
    browser.wait(f"(tab => tab && (tab.click(), tab.getAttribute('aria-selected') == 'true'))({tab})")
    boxes = SHOWN.format("textarea")
    browser.wait(f"{boxes}.length == {len(texts)}")
    for number, text in enumerate(texts):
        box = f"{boxes}[{number}]"
        browser.run(f"{box}.value = {json.dumps(text)}; {box}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    browser.wait(f"(button => button && (button.click(), true))({SHOWN.format('button.primary')}[0])")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
@pytest.mark.parametrize("width", [1200, 400])
def test_in_a_browser(tmp_path, url, pipes, width):
    with Browser(tmp_path, width) as browser:
        browser.open(url)
        ask(browser, "sst", [" "])
        note = browser.wait(
            f"{SHOWN.format('.note')}.map(note => note.innerText.trim()).find(text => text.startsWith('Write'))"
        )
        assert note == "Write a text, then press the button."
        assert not browser.run(f"{SHOWN.format('.toast-body')}.length"), "an error box"
        for task, texts in (("quora", [TEXT, OTHER]), ("sst", [TEXT])):
            ask(browser, task, texts)
            opener = f"{SHOWN.format('button.label-wrap')}"
            browser.wait(f"{opener}.length == 2")
            browser.run(f"{opener}.filter(label => !label.classList.contains('open')).forEach(label => label.click())")
            exact = f"{SHOWN.format('.exact')}.map(part => part.innerText)"
            browser.wait(f"{exact}.filter(text => text.includes('probabilities')).length == 2")
            for shown, pipe in zip(browser.run(exact), pipes.values(), strict=True):
                expected = pipe(task, tuple(texts) if len(texts) == 2 else TEXT)
                found = [float(number) for number in re.findall(r"\d\.\d+(?:e-?\d+)?", shown)]
                assert expected["label"] in shown and found == pytest.approx(numbers(expected), abs=1e-6)
            assert browser.run("document.documentElement.scrollWidth") <= width
