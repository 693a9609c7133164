"""Checkpoints in a process without the package, exports, and checkpoints that nobody should trust."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MINILM, ROOT, SIZE
from huggingface_hub import file_download
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from bert_multitask.commands.export import main as export_task
from bert_multitask.data.tokens import load_tokenizer
from bert_multitask.inference.export import export_classifier, export_encoder
from bert_multitask.inference.pipeline import MultitaskPipeline
from bert_multitask.model import configuration
from bert_multitask.model.classifier import TaskClassifier, split_pairs
from bert_multitask.model.configuration import MultitaskBertConfig
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel, PerTaskBertModel
from bert_multitask.training.checkpoints import check_checkpoint

TASKS = ["sst", "quora", "sts"]
# (task, pair encoding, pooling) of exports, and whether a stock model can be one.
EXPORTS = {
    ("sst", "joint", "cls"): True,
    ("quora", "joint", "cls"): True,
    ("sts", "joint", "cls"): True,
    ("sst", "joint", "pooler"): True,
    ("sst", "separate", "cls"): True,
    ("quora", "separate", "cls"): False,
    ("sts", "separate", "cls"): False,
    ("quora", "joint", "mean"): False,
}
PAIR = ("Is it far?", "How far is it, then?")
ROWS = {"sst": PAIR[0], "quora": PAIR, "sts": PAIR}


def make_model(folder: str, **settings) -> MultitaskBertModel:
    """A model whose encoders differ, so that mixing them up shows."""
    torch.manual_seed(0)
    model = MultitaskBertModel.from_pretrained(folder, tasks=TASKS, **settings).eval()
    if model.config.encoder_sharing == "per_task":
        for number, encoder in enumerate(model.encoders.values()):
            encoder.embeddings.LayerNorm.bias.data += 0.1 * (number + 1)
    return model


@pytest.fixture(scope="module")
def folders(tiny_bert, tokenizer, tmp_path_factory) -> dict:
    """A run of each encoder sharing, and every export of every layout; with the models."""
    root = tmp_path_factory.mktemp("reuse")
    models = {sharing: make_model(tiny_bert, encoder_sharing=sharing) for sharing in ("shared", "per_task")}
    for sharing, model in models.items():
        model.save_pretrained(root / sharing)
        tokenizer.save_pretrained(root / sharing)
    for task, pair_encoding, pooling in EXPORTS:
        layout = {"pair_encoding": pair_encoding, "pooling": pooling}
        model = models[pair_encoding, pooling] = make_model(tiny_bert, encoder_sharing="per_task", **layout)
        run = root / f"{pair_encoding}-{pooling}"
        model.save_pretrained(run)
        tokenizer.save_pretrained(run)
        export(run, "--task", task, "--output_dir", root / "exports" / f"{task}-{pair_encoding}-{pooling}")
    export(root / "per_task", "--task", "quora", "--encoder", "--output_dir", root / "exports" / "encoder")
    return {"root": root, "models": models}


def export(*argv) -> None:
    """Run `bert-multitask export`."""
    export_task([str(argument) for argument in argv])


@pytest.fixture(scope="module")
def elsewhere(folders) -> dict:
    """What a process that cannot import the package gets from them."""
    root = folders["root"]
    script = ROOT / "tests" / "without_package.py"
    run = subprocess.run(
        [sys.executable, script, root / "shared", root / "per_task", root / "exports"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HOME": str(root / "hf")},
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@torch.inference_mode()
def logits(model: MultitaskBertModel, tokenizer, task: str) -> list:
    return model(task, **tokenizer(*PAIR, return_tensors="pt")).logits[0].tolist()


@torch.inference_mode()
def test_auto_model_is_a_stock_bert_with_the_trained_encoder(folders, elsewhere, tokenizer):
    model = folders["models"]["shared"]
    module, hidden = elsewhere["encoder"]
    assert module == "transformers.models.bert.modeling_bert"
    expected = model.bert(**tokenizer(*PAIR, return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(torch.tensor(hidden), expected, atol=1e-5, rtol=0)
    expected = model.bert(**tokenizer(ROWS["sst"], return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(torch.tensor(elsewhere["sentence"]), expected, atol=1e-5, rtol=0)


def test_remote_code_gives_every_head_bit_for_bit(folders, elsewhere, tokenizer):
    assert elsewhere["whole"][0] == "MultitaskBertModel"
    for sharing, got in (("shared", elsewhere["whole"][1]), ("per_task", elsewhere["whole, per task"])):
        model = MultitaskBertModel.from_pretrained(folders["root"] / sharing).eval()
        assert got == {task: logits(model, tokenizer, task) for task in TASKS}
    assert elsewhere["again"] == elsewhere["whole, per task"]["sts"], "saved once more by the process itself"


def test_nothing_random_comes_without_a_word(elsewhere):
    """An encoder for each task needs its code; no head is a stock classifier's, unless a new one is asked for."""
    for way in ("no encoder", "no encoder of sentences"):
        assert "trust_remote_code=True" in elsewhere[way], way
    for way in ("no stock encoder", "no stock head"):
        assert "should be used as a decoder model if cross attention is added" in elsewhere[way], way
    for way in ("no head", "no head of three labels", "no head of a pipeline", "no head of pairs"):
        assert "dropout probability has to be between 0 and 1, but got -1" in elsewhere[way], way
    assert elsewhere["new head"] == 3


def test_with_the_package_the_auto_classes_know_its_type(folders):
    for load in (AutoModel.from_pretrained, MultitaskBertModel.from_pretrained):
        assert type(load(folders["root"] / "per_task")) is PerTaskBertModel
    assert AutoTokenizer.from_pretrained(folders["root"] / "per_task").is_fast


@pytest.mark.parametrize("export", EXPORTS, ids="-".join)
def test_pipelines_of_exported_tasks(folders, elsewhere, tokenizer, export):
    """With the probabilities of `predict`; a score as its place in the score range."""
    task, *layout = export
    model, name = folders["models"][tuple(layout)], "-".join(export)
    (row,) = MultitaskPipeline(model, tokenizer).table(task, [ROWS[task]])
    spec = model.tasks[task]
    expected = (
        {task: row["score"] / 5} if task == "sts" else dict(zip(spec.label_names, row["probabilities"], strict=True))
    )
    assert elsewhere[name] == pytest.approx(expected, abs=1e-5)
    if EXPORTS[export]:
        assert json.loads((folders["root"] / "exports" / name / "config.json").read_text())["model_type"] == "bert"
    else:
        assert "trust_remote_code=True" in elsewhere[f"{name} untrusted"]


def test_cross_encoder_reads_an_exported_score(folders, elsewhere, tokenizer):
    (row,) = MultitaskPipeline(folders["models"]["joint", "cls"], tokenizer).table("sts", [ROWS["sts"]])
    assert elsewhere["cross-encoder"] == pytest.approx([row["score"] / 5], abs=1e-5)


@torch.inference_mode()
def test_an_exported_encoder_is_its_tasks(folders, elsewhere, tokenizer):
    encoder = folders["models"]["per_task"].encoder("quora")
    expected = encoder(**tokenizer(*PAIR, return_tensors="pt")).last_hidden_state[0]
    torch.testing.assert_close(torch.tensor(elsewhere["exported encoder"]), expected, atol=1e-5, rtol=0)
    exported = AutoTokenizer.from_pretrained(folders["root"] / "exports" / "encoder")
    assert exported(*PAIR) == tokenizer(*PAIR)


def test_the_recipe_says_what_it_made_and_what_is_wrong(folders, tmp_path, capsys):
    run, out = folders["root"] / "shared", tmp_path / "out"
    export(run, "--task", "sts", "--output_dir", out)
    printed = capsys.readouterr().out
    assert f'pipeline("text-classification", "{out}")({{"text": "…", "text_pair": "…"}})' in printed
    assert "its score is the place between 0 and 5, from 0 to 1" in printed
    for argv, message in [
        ((run, "--task", "sst", "--output_dir", out), "out is not empty; choose another folder"),
        ((run, "--task", "nli", "--output_dir", tmp_path / "new"), "no task 'nli'; it has sst, quora, sts"),
        ((tmp_path / "none", "--task", "sst", "--output_dir", tmp_path / "new"), "none: no such folder"),
    ]:
        with pytest.raises(InputError, match=message):
            export(*argv)
    assert not (tmp_path / "new").exists()


def test_exports_of_a_pretrained_bert(tokenizer):
    """Whose hidden states are larger than a random one's, as the pooler made an identity must bear."""
    model = make_model(MINILM)
    (row,) = MultitaskPipeline(model, tokenizer).table("sst", [ROWS["sst"]])
    stock = export_classifier(model, "sst")
    assert type(stock) is BertForSequenceClassification
    with torch.inference_mode():
        got = stock(**tokenizer(ROWS["sst"], return_tensors="pt")).logits.softmax(-1)[0]
        half = stock.bfloat16()(**tokenizer(ROWS["sst"], return_tensors="pt")).logits.float().softmax(-1)[0]
    assert got.tolist() == pytest.approx(row["probabilities"], abs=2e-6)
    assert half.tolist() == pytest.approx(row["probabilities"], abs=2e-2)


def test_split_pairs_is_what_the_tokenizer_gives_apart(tokenizer):
    pairs = [("a b c", "d"), ("a", "b c d e"), ("", "x")]
    joint = tokenizer([list(pair) for pair in pairs], padding=True, return_tensors="pt")
    ids, mask = split_pairs(joint["input_ids"], joint["attention_mask"], joint["token_type_ids"])
    for row, pair in enumerate(pairs):
        for side, text in enumerate(pair):
            assert ids[row, side][mask[row, side].bool()].tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("pooling", ["cls", "pooler"])
@pytest.mark.parametrize("task", ["sst", "sts"])
def test_torch_export_takes_stock_exports(tiny_bert, task, pooling):
    check_torch_export(export_classifier(make_model(tiny_bert, pooling=pooling), task))


def test_torch_export_takes_an_exported_encoder(tiny_bert):
    check_torch_export(export_encoder(make_model(tiny_bert, encoder_sharing="per_task"), "sst"))


def check_torch_export(model) -> None:
    """Traced with one batch, it gives the same for another."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: torch.ones(2, 5, dtype=torch.long) for name in names}
    shapes = {name: {0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=512)} for name in inputs}
    graph = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    other = torch.arange(27).view(3, 9)
    other = {"input_ids": other, "attention_mask": (other % 9 < 7).long(), "token_type_ids": (other % 9 > 3).long()}
    torch.testing.assert_close(graph(**other)[0], model(**other)[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize("layout", [{"pooling": "mean"}, {"pair_encoding": "separate"}, {}], ids=str)
def test_what_cannot_be_traced_says_so_in_one_line(tiny_bert, layout):
    model, ids = make_model(tiny_bert, **layout), torch.ones(2, 5, dtype=torch.long)
    traced = export_classifier(model, "sts") if layout else model.bert
    for trace in (lambda: torch.export.export(traced, (ids,)), lambda: torch.jit.trace(traced, ids, strict=False)):
        with pytest.raises(InputError, match=r"trace a stock model: export_encoder\(model, task\)"):
            trace()


def test_a_pair_for_a_model_of_one_segment_is_exported_with_code(tmp_path, tokenizer):
    BertModel(BertConfig(vocab_size=len(tokenizer), type_vocab_size=1, **SIZE)).save_pretrained(tmp_path)
    model = make_model(str(tmp_path))
    (row,) = MultitaskPipeline(model, tokenizer).table("quora", [PAIR])
    exported = export_classifier(model, "quora")
    got = exported(**tokenizer(*PAIR, return_tensors="pt")).logits.softmax(-1)[0]
    assert type(exported) is TaskClassifier and got.tolist() == pytest.approx(row["probabilities"], abs=1e-6)
    assert type(export_classifier(model, "sst")) is BertForSequenceClassification


def test_a_pickle_is_refused_with_the_lines_that_convert_it(tiny_bert, tmp_path):
    folder = shutil.copytree(tiny_bert, tmp_path / "old")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="pytorch_model.bin is not read") as error:
        MultitaskBertModel.from_pretrained(folder, tasks=["sst"])
    code = str(error.value).partition("convert it: ")[2].rpartition(")")[0].replace("FOLDER", str(tmp_path / "new"))
    exec(code)
    loaded = MultitaskBertModel.from_pretrained(tmp_path / "new", tasks=["sst"])
    assert len(AutoTokenizer.from_pretrained(tmp_path / "new")) == loaded.config.vocab_size


@pytest.mark.parametrize("added", [["<one>"], ["<one>", "<two>"], [f"<{number}>" for number in range(40)]], ids=len)
def test_added_tokens_need_embeddings(tiny_bert, tmp_path, added):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(added)
    tokenizer.save_pretrained(folder)
    model = MultitaskBertModel.from_pretrained(folder, tasks=["sst"], encoder_sharing="per_task")
    with pytest.raises(InputError, match=rf"model.resize_token_embeddings\({len(tokenizer)}\)"):
        load_tokenizer(str(folder), model.config.vocab_size)
    model.resize_token_embeddings(len(tokenizer))
    assert len(load_tokenizer(str(folder), model.config.vocab_size)) == model.config.vocab_size


def test_a_classifier_has_one_task(tiny_bert):
    with pytest.raises(InputError, match="a TaskClassifier has one task, not sst, quora, sts"):
        TaskClassifier(make_model(tiny_bert, encoder_sharing="per_task").config)


class Hostile:
    """Pickled, it makes a file when it is read."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_pickled_weights_are_not_read(tiny_bert, tmp_path):
    folder, made = tmp_path / "bert", tmp_path / "made"
    shutil.copytree(tiny_bert, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for content in ({"weight": Hostile(made)}, weights):  # harmless ones are not read either
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(InputError, match="safetensors"):
            MultitaskBertModel.from_pretrained(folder, tasks=["sst"])
    assert not made.exists()


def write_config(folder: Path, **fields) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def cut(folder: Path) -> None:
    """Leave the first half of the weights' file."""
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: write_config(folder, hidden_size=64), r"LayerNorm.bias has shape \(32,\).* describe \(64,\)"),
        (lambda folder: write_config(folder, hidden_size="many"), "cannot be loaded"),
        (lambda folder: write_config(folder, num_hidden_layers=3), "lacks 16 encoder weights"),
        (lambda folder: write_config(folder, tasks=[{"name": "../../etc", "kind": "binary"}]), "Python identifier"),
        (lambda folder: write_config(folder, tasks=[{"name": "sst", "kind": "binary", "run": 1}]), "unknown field"),
        (lambda folder: write_config(folder, tasks="sst"), "tasks is 'sst'; expected a list"),
    ],
)
def test_damaged_and_hostile_checkpoints(folders, tmp_path, damage, message):
    folder = tmp_path / "run"
    shutil.copytree(folders["root"] / "shared", folder)
    damage(folder)
    with pytest.raises(InputError, match=message):
        MultitaskBertModel.from_pretrained(folder)


def test_code_beside_the_weights_is_not_run_unasked(folders, tmp_path):
    folder, made = tmp_path / "run", tmp_path / "made"
    shutil.copytree(folders["root"] / "shared", folder)
    for file in folder.glob("*.py"):
        file.write_text(f"open({str(made)!r}, 'w')\n")
    MultitaskBertModel.from_pretrained(folder)
    AutoModel.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    assert not made.exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "rng_state.pth", "model.safetensors", "trainer_state.json"])
def test_resume_reads_no_damaged_or_hostile_file(make_trainer, tmp_path, file):
    trainer = make_trainer(max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    checkpoint, made = Path(trainer.args.output_dir, "checkpoint-1"), tmp_path / "made"
    check_checkpoint(checkpoint)
    whole = (checkpoint / file).read_bytes()
    (checkpoint / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=f"{file} is damaged"):
        check_checkpoint(checkpoint)
    if file.endswith((".pt", ".pth")):
        torch.save({"state": Hostile(made)}, checkpoint / file)
        with pytest.raises(InputError, match=f"{file} is damaged, or not to be trusted"):
            check_checkpoint(checkpoint)
        with pytest.raises(pickle.UnpicklingError):  # Trainer's own way is as safe
            make_trainer(max_steps=2, save_strategy="no").train(resume_from_checkpoint=str(checkpoint))
    assert not made.exists() and not (checkpoint / "training_args.bin").exists()
    if file.startswith(("model", "optimizer")):  # or training would go on with others, and say nothing
        (checkpoint / file).unlink()
        with pytest.raises(InputError, match="is not there; name another checkpoint"):
            check_checkpoint(checkpoint)


def test_a_mistyped_name_without_a_network_fails_at_once(monkeypatch):
    """The Hub's client would ask again and again, for 23 seconds."""

    def no_address(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(configuration, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setattr(file_download, "get_hf_file_metadata", lambda **kwargs: pytest.fail("the Hub is asked"))
    with pytest.raises(InputError, match="runs/mistyped: no such folder here, .*not in the Hub's cache.*out of reach"):
        MultitaskBertConfig.from_pretrained("runs/mistyped")
