"""Whether a device computes what a CPU computes in float64, and what the stock model computes; SMART on it."""

import itertools
from functools import partial

import torch
from torch import Tensor, nn
from transformers import BertModel

from bert_multitask import MultitaskBertModel, smart_penalty
from bert_multitask.model.configuration import resolve_folder
from bert_multitask.model.encoder import MinBertModel
from bert_multitask.model.losses import DIVERGENCES
from bert_multitask.training.smart import DropoutMasks

from .device import DEVICE, precision
from .gpu_sides import OURS, PADDED, DeviceRig, chosen
from .peers import INPUTS
from .rig import NAMES
from .session import Session

ATTENTION = {PADDED: "sdpa", OURS: "sdpa", "ours eager": "eager"}  # side -> implementation


def parity(session: Session) -> None:
    """Our encoder against transformers.BertModel and float64; gradients; SMART under autocast, with shared dropout."""
    rig = DeviceRig(session.options)
    batches = {batch["task"]: batch for batch in rig.device_batches(32)}
    name = session.options.model_name_or_path
    ours = MinBertModel.from_pretrained(name).to(DEVICE).eval()
    stock = BertModel.from_pretrained(resolve_folder(name), dtype=torch.float32).to(DEVICE).eval()
    batch = {key: batches[NAMES[-1]][key] for key in INPUTS}
    exact = BertModel.from_pretrained(resolve_folder(name), dtype=torch.float64).eval()
    with torch.no_grad():
        reference = exact(**{key: value.cpu() for key, value in batch.items()}).last_hidden_state.to(DEVICE)
    for dtype in ("fp32", "tf32", "bf16"):
        errors = partial(output_errors, ours, stock, batch, reference, dtype)
        session.measure("parity", errors, what="‖out − float64‖ / ‖float64‖", dtype=dtype)
    for side in ATTENTION:
        gradients = partial(gradient_error, ours, stock, batch, side)
        session.measure("parity", gradients, what="largest difference of a gradient / largest, fp32", side=side)
    for side, dtype in itertools.product(ATTENTION, ("fp32", "bf16")):
        step = partial(smart_step, rig.model, batches[NAMES[0]], side, dtype)
        session.measure("parity", step, what="SMART", side=side, dtype=dtype)


def output_errors(ours: nn.Module, stock: nn.Module, batch: dict, reference: Tensor, dtype: str) -> dict[str, float]:
    """{side: relative error of its hidden states}; of ours also where the last layer runs for [CLS] alone, the largest
    difference from where it runs for all."""
    real = batch["attention_mask"].bool()

    def error(output: Tensor) -> float:
        return ((output.double() - reference)[real].norm() / reference[real].norm()).item()

    with torch.no_grad(), precision(dtype):
        result = {"stock sdpa": error(stock(**batch).last_hidden_state)}
        for side, attention in ATTENTION.items():
            ours.set_attn_implementation(attention)
            with chosen(side):
                output = ours(**batch).last_hidden_state
                alone = ours(**batch, first_token_only=True).last_hidden_state
            result[side] = error(output)
            result[f"{side}, [CLS] alone"] = (alone[:, 0] - output[:, 0]).abs().max().item()
    return result


def gradient_error(ours: nn.Module, stock: nn.Module, batch: dict, side: str) -> dict[str, float]:
    """Largest difference of a gradient from the stock model's, by the largest gradient, without dropout."""
    real = batch["attention_mask"].bool()
    ours.set_attn_implementation(ATTENTION[side])
    for model in (ours, stock):
        model.zero_grad()
        with precision("fp32"), chosen(side):
            model(**batch).last_hidden_state[real].square().mean().backward()
    weights = zip(ours.parameters(), stock.parameters(), strict=True)
    pairs = [(our.grad, their.grad) for our, their in weights if our.grad is not None]
    largest = max(their.abs().max() for _, their in pairs)
    return {"value": (max((our - their).abs().max() for our, their in pairs) / largest).item()}


def smart_step(model: MultitaskBertModel, batch: dict, side: str, dtype: str) -> dict[str, float]:
    """Loss, penalty and norm of the gradients; and how far a prediction with the same dropout masks is from the first:
    0, if the device gives the same random numbers again."""
    model.to(DEVICE).train().zero_grad()
    model.set_attn_implementation(ATTENTION[side])
    inputs = {key: value for key, value in batch.items() if key not in ("task", "labels", "input_ids")}
    embeddings = model.encoder(batch["task"]).get_input_embeddings()(batch["input_ids"])
    torch.manual_seed(0)
    with precision(dtype), chosen(side):
        masks = DropoutMasks(batch["labels"])
        outputs = model(**batch)
        again = masks.replay(lambda: model(**batch).logits)

        def predict(embeddings: Tensor) -> Tensor:
            return masks.replay(lambda: model(batch["task"], inputs_embeds=embeddings, **inputs).logits)

        divergence = DIVERGENCES[model.tasks[batch["task"]].divergence]
        penalty = smart_penalty(
            predict, embeddings, batch["attention_mask"], outputs.logits, divergence, radius=1e-2, step_size=1e-2
        )
        (outputs.loss + penalty).backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return {
        "loss": outputs.loss.item(),
        "penalty": penalty.item(),
        "gradient norm": torch.nn.utils.get_total_norm(gradients).item(),
        "shared masks differ by": (again - outputs.logits).abs().max().item(),
    }
