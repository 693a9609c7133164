"""The multitask model: head shapes, formulas, losses, saving and loading."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, BertModel

from bert_multitask.configuration import InputError
from bert_multitask.heads import MultitaskBertModel
from bert_multitask.tasks import TASKS, Task

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
    with pytest.raises(InputError, match="loss is 'focal'; choose one of cross_entropy"):
        MultitaskBertModel.from_pretrained(tiny_bert, tasks=[binary | {"name": "x", "loss": "focal"}])
    with pytest.raises(InputError, match="task 'keys': PyTorch keeps this name"):
        MultitaskBertModel.from_pretrained(tiny_bert, tasks=[binary | {"name": "keys"}])
    with pytest.raises(InputError, match="needs tasks"):
        MultitaskBertModel.from_pretrained(tiny_bert)
