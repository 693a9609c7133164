"""A hub on loopback that serves models and datasets read-only; run as a script, it loads both from it.

    python hub_server.py CHECKPOINT_FOLDER

It speaks the part of the Hub's HTTP protocol that `from_pretrained` and `load_dataset` use; the client is the real one.
"""

import hashlib
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(r"^/api/(datasets|models)/(?P<repo>[^/]+/[^/]+)(/(?P<verb>revision|tree|paths-info)/(?P<rest>.*))?$")
FILE = re.compile(r"^(/datasets)?/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<path>.+)$")


def make_handler(repos: dict[str, dict[str, bytes]]) -> type[BaseHTTPRequestHandler]:
    """A handler that serves {repository: {path: content}}."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def missing(self, code: str) -> None:
            self.answer(404, b"{}", X_Error_Code=code, X_Error_Message=code)

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if match := FILE.match(path):
                files = repos.get(match["repo"])
                if files is None or match["path"] not in files:
                    return self.missing("RepoNotFound" if files is None else "EntryNotFound")
                body = files[match["path"]]
                tag = hashlib.sha1(body).hexdigest()
                return self.answer(200, body, ETag=f'"{tag}"', X_Repo_Commit="0" * 40)
            match = API.match(path)
            if not match or match["repo"] not in repos:
                return self.missing("RepoNotFound")
            files = repos[match["repo"]]
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in files.items()
            ]
            if match["verb"] == "tree":
                folder = match["rest"].partition("/")[2]
                found = [entry for entry in entries if entry["path"].startswith(folder)]
                return self.send_json(found) if found else self.missing("EntryNotFound")
            if match["verb"] == "paths-info":
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                wanted = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode()).get("paths", [])
                return self.send_json([entry for entry in entries if entry["path"] in wanted])
            siblings = [{"rfilename": name} for name in files]
            self.send_json(
                {"_id": "1", "id": match["repo"], "sha": "0" * 40, "siblings": siblings, "private": False, "tags": []}
            )

        def send_json(self, content) -> None:
            self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

        do_POST = do_HEAD = do_GET

    return Handler


def lines(*rows: dict) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def card(name: str) -> bytes:
    """A dataset card that lists one configuration's files, as GLUE's does."""
    files = "".join(
        f"  - split: {split}\n    path: {name}/{split}.jsonl\n" for split in ("train", "validation", "test")
    )
    return f"- config_name: {name}\n  data_files:\n{files}".encode()


REPOS = {
    "SetFit/sst5": {
        "train.jsonl": lines(
            {"text": "good", "label": 4, "label_text": "very positive"},
            {"text": "dull", "label": 1, "label_text": "negative"},
        ),
        "dev.jsonl": lines({"text": "fine", "label": 2, "label_text": "neutral"}),
        "test.jsonl": lines({"text": "x", "label": 0, "label_text": "very negative"}),
    },
    "nyu-mll/glue": {
        "README.md": b"---\nconfigs:\n" + card("qqp") + card("stsb") + b"---\n",
        "qqp/train.jsonl": lines({"question1": "a ?", "question2": "b ?", "label": 0, "idx": 9}),
        "qqp/validation.jsonl": lines({"question1": "a ?", "question2": "b ?", "label": 1, "idx": 7}),
        "qqp/test.jsonl": lines({"question1": "c ?", "question2": "d ?", "label": -1, "idx": 3}),
        "stsb/train.jsonl": lines({"sentence1": "a", "sentence2": "b", "label": 2.5, "idx": 5}),
        "stsb/validation.jsonl": lines({"sentence1": "a", "sentence2": "b", "label": 0.0, "idx": 5}),
        "stsb/test.jsonl": lines({"sentence1": "a", "sentence2": "b", "label": -1.0, "idx": 5}),
    },
    "tasksource/counterfactually-augmented-imdb": {
        "train.tsv": b"Sentiment\tText\nPositive\tlong\nNegative\tshort\n",
        "dev.tsv": b"Sentiment\tText\nPositive\tlong\n",
        "test.tsv": b"Sentiment\tText\nNegative\tshort\n",
    },
}


def load_everything(repos: dict[str, dict[str, bytes]]) -> dict:
    """Load a checkpoint, the presets' datasets, three that fail, and a trained run, with the package as users do."""
    import dataclasses
    import tempfile

    from transformers import AutoTokenizer

    from bert_multitask.arguments import MultitaskTrainingArguments
    from bert_multitask.configuration import InputError
    from bert_multitask.data import load_rows
    from bert_multitask.heads import MultitaskBertModel
    from bert_multitask.inference import SplitReader, TrainedRun, predict_runs
    from bert_multitask.prediction import predict
    from bert_multitask.tasks import TASKS, HubSource

    results = {
        name: {split: [list(row.values()) for row in rows] for split, rows in load_rows(task, "hub").items()}
        for name, task in TASKS.items()
    }
    broken = {
        "wrong split": HubSource("SetFit/sst5", splits={"train": "training"}),
        "wrong column": HubSource("SetFit/sst5", text="sentence"),
        "absent": HubSource("nobody/nothing"),
    }
    for name, source in broken.items():
        try:
            load_rows(dataclasses.replace(TASKS["sst"], hub=source), "hub")
        except InputError as error:
            results[name] = str(error)
    model = MultitaskBertModel.from_pretrained("someone/bert", tasks=["sst"])
    tokenizer = AutoTokenizer.from_pretrained("someone/bert")
    results["predicted"] = predict(model, tokenizer, "sst", ["fine"])["label"][:]
    results["weights"] = float(model.bert.encoder["layer"][0].output.dense.weight.detach().double().sum())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        repos["someone/run"] = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
        run, args = TrainedRun("someone/run", data_dir="hub"), MultitaskTrainingArguments(output_dir=folder)
        (tables,) = predict_runs([run], SplitReader("test"), args)
    results["run"] = {name: table["id"][:] for name, table in tables.items()}
    return results


if __name__ == "__main__":
    checkpoint = {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}
    repos = REPOS | {"someone/bert": checkpoint}
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(repos))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1"}
    print(json.dumps(load_everything(repos)))
