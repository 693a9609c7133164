"""The multitask model: head shapes, formulas, losses, saving and loading."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, BertModel

from bert_multitask.model.configuration import MultitaskBertConfig
from bert_multitask.model.errors import InputError
from bert_multitask.model.modeling import MultitaskBertModel
from bert_multitask.model.tasks import TASKS, Task
from bert_multitask.training.arguments import RunArguments
from bert_multitask.training.run import load_model

BATCH = {
    "input_ids": torch.tensor([[101, 7, 8, 102], [101, 9, 102, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
    "token_type_ids": torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]),
}


@pytest.fixture
def model(tiny_bert):
    torch.manual_seed(0)
    return MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sst", "quora", "sts"]).eval()


def linear_shapes(head: nn.Module) -> list:
    return [tuple(layer.weight.shape) for layer in head.modules() if isinstance(layer, nn.Linear)]


def test_head_shapes_are_the_papers(model):
    """Sections 4.1 and 4.3, with H = 32 here: SA H x 5; PD and STS H x 32, 32 x 1 (PyTorch keeps them transposed)."""
    assert linear_shapes(model.heads["sst"]) == [(5, 32)]
    assert linear_shapes(model.heads["quora"]) == linear_shapes(model.heads["sts"]) == [(32, 32), (1, 32)]


def test_new_heads_begin_as_pytorchs_linear_layers(model):
    """Uniform within 1 / sqrt(inputs); BERT's normal of .02 would be an order smaller in the last layer."""
    for head in model.heads.values():
        for layer in head.children():
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                assert 0.5 * bound < layer.weight.abs().max() <= bound and 0 < layer.bias.abs().max() <= bound
    assert model.bert.pooler.dense.weight.abs().max() < 0.2, "the encoder keeps BERT's"


@torch.inference_mode()
def test_logits_are_the_papers_formulas(model, tiny_bert):
    cls = BertModel.from_pretrained(tiny_bert).eval()(**BATCH).last_hidden_state[:, 0].double()
    weights = {name: weight.double() for name, weight in model.heads.state_dict().items()}

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    expected = {
        "sst": linear(cls, "sst.classifier"),
        "quora": linear(linear(cls, "quora.hidden"), "quora.output")[:, 0],
        "sts": 5 * torch.sigmoid(linear(linear(cls, "sts.hidden"), "sts.output")[:, 0]),
    }
    for task, logits in expected.items():
        torch.testing.assert_close(model(task, **BATCH).logits.double(), logits, atol=1e-5, rtol=0)


def test_scores_fill_the_range(model):
    model.heads["sts"].output.bias.data.fill_(100.0)
    assert model("sts", **BATCH).logits.tolist() == [5, 5]
    model.heads["sts"].output.bias.data.fill_(-100.0)
    assert model("sts", **BATCH).logits.tolist() == [0, 0]


def test_the_loss_is_the_tasks(model):
    outputs = model("sst", **BATCH, labels=torch.tensor([1, -100]))
    assert outputs.loss.item() == pytest.approx(
        nn.functional.cross_entropy(outputs.logits[:1], torch.tensor([1])).item()
    )
    outputs = model("sts", **BATCH, labels=torch.tensor([1.0, 2.0]), num_items_in_batch=4)
    assert outputs.loss.item() == pytest.approx((outputs.logits - torch.tensor([1.0, 2.0])).pow(2).sum().item() / 4)
    assert model("sst", **BATCH).loss is None


def test_each_task_has_its_dropout(tiny_bert):
    tasks = [Task(name=f"t{rate}", kind="binary", label_names=("n", "y"), dropout=rate / 10) for rate in (0, 9)]
    model = MultitaskBertModel.from_pretrained(
        tiny_bert, tasks=tasks, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).train()
    assert torch.equal(model("t0", **BATCH).logits, model("t0", **BATCH).logits)
    assert not torch.equal(model("t9", **BATCH).logits, model("t9", **BATCH).logits)


def test_a_task_leaves_other_heads_without_gradient(model):
    model("sst", **BATCH, labels=torch.tensor([0, 1])).loss.backward()
    grads = {name: parameter.grad is not None for name, parameter in model.named_parameters()}
    for name, has_gradient in grads.items():
        assert has_gradient == (not name.startswith(("heads.quora", "heads.sts", "bert.pooler"))), name


def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = MultitaskBertModel.from_pretrained(tmp_path)
    assert list(loaded.tasks) == ["sst", "quora", "sts"]
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    for task in loaded.tasks:
        # Equal weights; loaded ones lie memory-mapped, where the last bit of a product may round otherwise.
        torch.testing.assert_close(loaded.eval()(task, **BATCH).logits, model(task, **BATCH).logits, atol=1e-6, rtol=0)


def test_a_stock_bert_reads_the_trained_encoder(model, tmp_path):
    model.save_pretrained(tmp_path)
    stock, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(stock) is BertModel and not info["missing_keys"]
    torch.testing.assert_close(
        stock.eval()(**BATCH).last_hidden_state[:, 0], model.bert(**BATCH).last_hidden_state[:, 0], atol=1e-5, rtol=0
    )


def test_a_trained_run_can_get_another_task(model, tmp_path):
    model.save_pretrained(tmp_path)
    more = MultitaskBertModel.from_pretrained(tmp_path, tasks=["sst", TASKS["cfimdb"]])
    assert list(more.tasks) == ["sst", "cfimdb"]
    assert torch.equal(more.heads["sst"].classifier.weight, model.heads["sst"].classifier.weight)


OWN = {"name": "a", "kind": "binary", "label_names": ["neg", "pos"]}
OWN_PAIR = {"name": "b", "kind": "similarity", "text_pair": "other", "score_range": [0, 5]}


@pytest.fixture(scope="module")
def own_run(tiny_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own_run")
    MultitaskBertModel.from_pretrained(tiny_bert, tasks=[OWN, OWN_PAIR]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (OWN | {"label_names": ["pos", "neg"]}, {}, r"'a' .* label_names \('neg', 'pos'\), not \('pos', 'neg'\)"),
        (OWN | {"label_names": ["no", "yes"]}, {}, r"label_names \('neg', 'pos'\), not \('no', 'yes'\)"),
        (OWN | {"kind": "classification"}, {}, "'a' .* kind 'binary', not 'classification'"),
        (OWN | {"text_pair": "second"}, {}, "'a' .* texts a row 1, not 2"),
        (OWN_PAIR | {"score_range": [1, 5]}, {}, r"'b' .* score_range \(0.0, 5.0\), not \(1.0, 5.0\)"),
        (OWN_PAIR, {"pair_encoding": "separate"}, "'b' .* pair_encoding 'joint', not 'separate'"),
        (OWN, {"pooling": "mean"}, "'a' .* pooling 'cls', not 'mean'"),
        (None, {"pooling": "pooler"}, "pooling 'cls', not 'pooler'"),
    ],
    ids=["other order", "other names", "other kind", "a pair", "other range", "apart", "pooled otherwise", "no tasks"],
)
def test_a_trained_head_is_never_given_another_meaning(own_run, tmp_path, task, settings, message):
    tasks = task and [task]
    with pytest.raises(InputError, match=message + ".*; give the task another name"):
        MultitaskBertModel.from_pretrained(own_run, tasks=tasks, **settings)
    config = MultitaskBertConfig.from_pretrained(own_run, **settings)
    config.tasks = tasks or config.tasks
    with pytest.raises(InputError, match=message):  # handed over as a whole
        MultitaskBertModel.from_pretrained(own_run, config=config)
    with pytest.raises(ValueError, match=message):  # the code in the folder
        AutoModel.from_pretrained(own_run, trust_remote_code=True, tasks=config.tasks, **settings)


def test_the_tasks_of_a_run_are_named(own_run):
    """Alone, or beside new ones, in any order; their heads are the trained ones."""
    whole = MultitaskBertModel.from_pretrained(own_run)
    names = [*whole.tasks]
    model = MultitaskBertModel.from_pretrained(own_run, tasks=["sst", *names[::-1]])
    assert [*model.tasks] == ["sst", *names[::-1]]
    for name in names:
        assert model.tasks[name] == whole.tasks[name]
        weights = model.heads[name].state_dict()
        assert all(torch.equal(weights[key], value) for key, value in whole.heads[name].state_dict().items())
    assert [*MultitaskBertModel.from_pretrained(own_run, tasks=names[1:]).tasks] == names[1:]
    with pytest.raises(InputError, match="unknown task 'nobody'"):
        MultitaskBertModel.from_pretrained(own_run, tasks=["nobody"])


def test_tasks_that_are_no_list(tiny_bert):
    for one, found in ((TASKS["sst"], "a Task"), ("sst", "'sst'"), ({"sst": TASKS["sst"]}, "a dict"), (1, "1")):
        with pytest.raises(InputError, match=f"tasks is {found}; expected a list of tasks, for one task a list of one"):
            MultitaskBertModel.from_pretrained(tiny_bert, tasks=one)


def test_what_leaves_a_heads_meaning_may_differ(own_run):
    """And a task of another name begins a new head, also in another layout."""
    trained = MultitaskBertModel.from_pretrained(own_run)
    again = OWN | {
        "epochs": 2,
        "dropout": 0.0,
        "smart_weight": 1.0,
        "text": "words",
        "files": {"train": "t", "dev": "d"},
    }
    model = MultitaskBertModel.from_pretrained(own_run, tasks=[again, OWN | {"name": "new", "label_names": ["x", "y"]}])
    assert torch.equal(model.heads["a"].hidden.weight, trained.heads["a"].hidden.weight)
    assert not torch.equal(model.heads["new"].hidden.weight, trained.heads["a"].hidden.weight)
    new = MultitaskBertModel.from_pretrained(own_run, tasks=[OWN_PAIR | {"name": "c"}], pair_encoding="separate")
    assert linear_shapes(new.heads["c"]) == [(32, 32)]


@pytest.mark.parametrize("sharing", ["shared", "per_task"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_run_stored_in_another_precision_loads_as_fp32(own_run, tmp_path, sharing, dtype):
    stored = MultitaskBertModel.from_pretrained(own_run, dtype=dtype, encoder_sharing=sharing)
    assert {weight.dtype for weight in stored.parameters()} == {dtype}, "asked for"
    stored.save_pretrained(tmp_path)
    for model in (
        MultitaskBertModel.from_pretrained(tmp_path),
        MultitaskBertModel.from_pretrained(tmp_path, tasks=[OWN], encoder_sharing=sharing),
        MultitaskBertModel.from_pretrained(tmp_path, encoder_sharing="per_task"),
        AutoModel.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path)
    assert {weight.dtype for weight in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}


def test_a_recipe_trains_in_fp32_from_a_checkpoint_in_half_precision(tiny_bert, tmp_path):
    BertModel.from_pretrained(tiny_bert, dtype=torch.bfloat16).save_pretrained(tmp_path)
    run = RunArguments(model_name_or_path=str(tmp_path), data_dir="none", tasks=["sst"], encoder_sharing="per_task")
    assert {weight.dtype for weight in load_model(run, run.load_tasks()).parameters()} == {torch.float32}


def test_a_head_with_a_bad_weight_is_refused(own_run, tmp_path):
    shutil.copytree(own_run, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    weights["heads.b.output.bias"] = torch.tensor([float("nan")])
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="heads.b.output.bias has values that are not finite"):
        MultitaskBertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("sharing", ["shared", "per_task"])
def test_resized_token_embeddings(own_run, tmp_path, sharing):
    model = MultitaskBertModel.from_pretrained(own_run, encoder_sharing=sharing).eval()
    before, size = {task: model(task, **BATCH).logits for task in model.tasks}, model.config.vocab_size
    assert len(model.resize_token_embeddings(size + 3).weight) == model.config.vocab_size == size + 3
    new = {task: model.encoder(task).get_input_embeddings().weight[-3:] for task in model.tasks}
    assert torch.equal(new["a"], new["b"]), "encoders that were the same stay so"
    model.save_pretrained(tmp_path)
    loaded = MultitaskBertModel.from_pretrained(tmp_path)
    for task, logits in before.items():
        torch.testing.assert_close(loaded(task, **BATCH).logits, logits)
        assert loaded(task, torch.tensor([[size + 2]])).logits.isfinite().all()


def test_an_encoder_for_each_of_too_many_tasks_is_refused_at_once(own_run, tmp_path):
    shutil.copytree(own_run, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "multitask_bert"}
    config["tasks"] = [OWN | {"name": f"t{number}"} for number in range(600)]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="num_hidden_layers = 2 in 600 encoders"):
        MultitaskBertModel.from_pretrained(tmp_path)


def test_a_configuration_that_wants_tuples_changes_nothing(own_run):
    """`return_dict: false` is in some old checkpoints."""
    model = MultitaskBertModel.from_pretrained(own_run).eval()
    expected = model("a", **BATCH).logits
    model.config.return_dict = False
    assert torch.equal(model("a", **BATCH)[0], expected)


def test_a_run_without_its_heads_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "sts" not in k}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lacks their weights, heads.sts.hidden.bias first"):
        MultitaskBertModel.from_pretrained(tmp_path)


def test_mistakes_are_named(model, tiny_bert):
    with pytest.raises(InputError, match="no task 'cfimdb'; it has sst, quora, sts"):
        model("cfimdb", **BATCH)
    binary = {"kind": "binary", "label_names": ["n", "y"]}
    with pytest.raises(InputError, match="loss is 'focal'; choose one of binary_cross_entropy"):
        MultitaskBertModel.from_pretrained(tiny_bert, tasks=[binary | {"name": "x", "loss": "focal"}])
    with pytest.raises(InputError, match="task 'keys': this name is reserved"):
        MultitaskBertModel.from_pretrained(tiny_bert, tasks=[binary | {"name": "keys"}])
    with pytest.raises(InputError, match="needs tasks"):
        MultitaskBertModel.from_pretrained(tiny_bert)


PAIRS = {"input_ids": torch.tensor([[[101, 7, 8, 102], [101, 9, 102, 0]], [[101, 5, 102, 0], [101, 6, 102, 0]]])}
PAIRS |= {"attention_mask": (PAIRS["input_ids"] != 0).long()}


def load(folder, **settings) -> MultitaskBertModel:
    torch.manual_seed(0)
    return MultitaskBertModel.from_pretrained(folder, tasks=["sst", "quora", "sts"], **settings).eval()


@torch.inference_mode()
def test_separate_encoding_is_the_papers_formulas(tiny_bert):
    """Section 4.1: PD concatenates the two embeddings into 2H x 1; STS projects both with one H x H layer, and scales
    their cosine. SA is the same in both encodings."""
    model = load(tiny_bert, pair_encoding="separate")
    assert linear_shapes(model.heads["quora"]) == [(1, 64)] and linear_shapes(model.heads["sts"]) == [(32, 32)]
    stock = BertModel.from_pretrained(tiny_bert).eval()
    first, second = (
        stock(PAIRS["input_ids"][:, text], PAIRS["attention_mask"][:, text]).last_hidden_state[:, 0].double()
        for text in (0, 1)
    )
    weights = {name: weight.double() for name, weight in model.heads.state_dict().items()}
    paraphrase = torch.cat([first, second], 1) @ weights["quora.classifier.weight"].T + weights["quora.classifier.bias"]
    torch.testing.assert_close(model("quora", **PAIRS).logits.double(), paraphrase[:, 0], atol=1e-5, rtol=0)
    a, b = (x @ weights["sts.projection.weight"].T + weights["sts.projection.bias"] for x in (first, second))
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(model("sts", **PAIRS).logits.double(), 2.5 * (cosine + 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(model("sst", **BATCH).logits, load(tiny_bert)("sst", **BATCH).logits)


def test_classes_of_separately_encoded_pairs(tiny_bert):
    nli = Task(name="nli", kind="classification", text_pair="hypothesis", label_names=("yes", "maybe", "no"))
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=[nli], pair_encoding="separate")
    assert linear_shapes(model.heads["nli"]) == [(3, 64)]
    assert model("nli", **PAIRS).logits.shape == (2, 3)


SEPARATE_STS = {
    "name": "sts",
    "kind": "regression",
    "text_pair": "b",
    "score_range": [0, 5],
    "pair_encoding": "separate",
    "pooling": "mean",
    "head": "scaled_cosine",
    "loss": "score_cross_entropy",
}


@torch.inference_mode()
def test_tasks_with_a_layout_of_their_own(tiny_bert, tmp_path):
    """Against models that have each task's layout throughout, of the same weights; also after saving, with the
    package's code and with the checkpoint's."""
    model = MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sst", "quora", SEPARATE_STS]).eval()
    model.save_pretrained(tmp_path)
    remote = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
    means = MultitaskBertModel.from_pretrained(
        tiny_bert, tasks=[SEPARATE_STS], pair_encoding="separate", pooling="mean"
    ).eval()
    score = model("sts", **PAIRS).logits
    assert torch.equal(score, means("sts", **PAIRS).logits)
    assert torch.equal(score, remote("sts", **PAIRS).logits)
    plain = MultitaskBertModel.from_pretrained(tiny_bert, tasks=["sst", "quora"]).eval()
    plain.heads.load_state_dict({k: v for k, v in model.heads.state_dict().items() if not k.startswith("sts")})
    for task in ("sst", "quora"):
        assert torch.equal(model(task, **BATCH).logits, plain(task, **BATCH).logits)
    hidden = BertModel.from_pretrained(tiny_bert).eval()(**{k: v.flatten(0, 1) for k, v in PAIRS.items()})
    mask = PAIRS["attention_mask"].flatten(0, 1).unsqueeze(-1)
    means = (hidden.last_hidden_state * mask).sum(1) / mask.sum(1)
    a, b = means.double().unflatten(0, (-1, 2)).unbind(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(score.double(), 5 / (1 + (3.4 - 6 * cosine).exp()), atol=1e-4, rtol=0)


def test_the_layout_of_a_trained_head_is_kept(tiny_bert, tmp_path):
    MultitaskBertModel.from_pretrained(tiny_bert, tasks=[SEPARATE_STS]).save_pretrained(tmp_path)
    for field, value in (("pooling", "cls"), ("pair_encoding", "joint"), ("head", "cosine")):
        with pytest.raises(InputError, match=f"'sts' .* {field} "):
            MultitaskBertModel.from_pretrained(
                tmp_path, tasks=[SEPARATE_STS | {"head": None, "loss": None} | {field: value}]
            )
    for fields, message in [
        ({"pooling": "max"}, "task 'sts': pooling is 'max'; choose one of cls, pooler, mean"),
        ({"pair_encoding": "tpe"}, "task 'sts': pair_encoding is 'tpe'; choose one of joint, separate"),
        ({"head": "linear"}, "task 'sts': loss 'score_cross_entropy' needs scores within .* 'linear' does not bound"),
        ({"score_range": None, "head": "linear"}, "task 'sts': loss 'score_cross_entropy' needs a score_range"),
    ]:
        with pytest.raises(InputError, match=message):
            MultitaskBertModel.from_pretrained(tiny_bert, tasks=[SEPARATE_STS | {"head": None} | fields])


@torch.inference_mode()
@pytest.mark.parametrize("pooling", ["cls", "pooler", "mean"])
def test_pooling(tiny_bert, pooling):
    stock = BertModel.from_pretrained(tiny_bert).eval()(**BATCH)
    mask = BATCH["attention_mask"].unsqueeze(-1)
    expected = {
        "cls": stock.last_hidden_state[:, 0],
        "pooler": stock.pooler_output,
        "mean": (stock.last_hidden_state * mask).sum(1) / mask.sum(1),
    }
    model = load(tiny_bert, pooling=pooling)
    head = model.heads["sst"].classifier
    torch.testing.assert_close(model("sst", **BATCH).logits, head(expected[pooling]), atol=1e-5, rtol=0)
    whole = {name: BATCH[name][:1] for name in ("input_ids", "token_type_ids")}  # no mask: no padding
    torch.testing.assert_close(model("sst", **whole).logits, model("sst", **BATCH).logits[:1], atol=1e-5, rtol=0)


def test_the_pooler_must_be_in_the_checkpoint(tiny_bert, tmp_path):
    BertModel.from_pretrained(tiny_bert, add_pooling_layer=False).save_pretrained(tmp_path)
    load(tmp_path)
    with pytest.raises(InputError, match="lacks bert.pooler.dense.bias, which pooling='pooler' needs"):
        load(tmp_path, pooling="pooler")


def test_encoders_of_their_own_begin_as_the_checkpoint(tiny_bert):
    model = load(tiny_bert, encoder_sharing="per_task")
    expected = BertModel.from_pretrained(tiny_bert).state_dict()
    memory = set()
    for task in model.tasks:
        got = model.encoder(task).state_dict()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[name], weight) for name, weight in expected.items()), task
        memory |= {weight.data_ptr() for weight in got.values()}
    assert len(memory) == 3 * len(expected), "copies, not one encoder under three names"
    torch.testing.assert_close(model("sst", **BATCH).logits, load(tiny_bert)("sst", **BATCH).logits)
    model("sst", **BATCH, labels=torch.tensor([0, 1])).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".sst." in name and ".pooler." not in name), name


def test_encoders_of_their_own_save_and_load(tiny_bert, tmp_path):
    model = load(tiny_bert, encoder_sharing="per_task", pair_encoding="separate", pooling="mean")
    model.encoders["sts"].embeddings.word_embeddings.weight.data += 1
    model.save_pretrained(tmp_path)
    loaded = MultitaskBertModel.from_pretrained(tmp_path).eval()
    assert loaded.config.encoder_sharing == "per_task" and loaded.config.pair_encoding == "separate"
    assert loaded.config.pooling == "mean" and loaded.config.model_type == "multitask_bert"
    torch.testing.assert_close(loaded("sts", **PAIRS).logits, model("sts", **PAIRS).logits, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="these cannot become one shared encoder"):
        MultitaskBertModel.from_pretrained(tmp_path, encoder_sharing="shared")
    again = AutoModel.from_pretrained(tmp_path).eval()  # known with the package imported; test_reuse.py has it without
    torch.testing.assert_close(again("sts", **PAIRS).logits, loaded("sts", **PAIRS).logits, atol=0, rtol=0)


def test_layouts_are_checked(tiny_bert):
    with pytest.raises(InputError, match="pair_encoding is 'tpe'; choose one of joint, separate"):
        load(tiny_bert, pair_encoding="tpe")
    with pytest.raises(InputError, match="pooling is 'max'; choose one of cls, pooler, mean"):
        load(tiny_bert, pooling="max")
    with pytest.raises(InputError, match="encoder_sharing is 'both'; choose one of shared, adapters, per_task"):
        load(tiny_bert, encoder_sharing="both")
    with pytest.raises(InputError, match=r"expected inputs of shape \(B, 2, L\), .* not \(2, 4\)"):
        load(tiny_bert, pair_encoding="separate")("sts", **BATCH)
    with pytest.raises(InputError, match=r"takes one sequence a row, \(B, L\), not \(2, 2, 4\)"):
        load(tiny_bert)("sts", **PAIRS)
    with pytest.raises(InputError, match="divergence is 'l1'; choose one of binary_symmetric_kl"):
        nli = {"name": "x", "kind": "binary", "label_names": ["n", "y"], "divergence": "l1"}
        MultitaskBertModel.from_pretrained(tiny_bert, tasks=[nli])
