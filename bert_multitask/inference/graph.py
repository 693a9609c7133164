"""Export a task as a graph that runs without this package: `torch.export`, ONNX, and ONNX with 8-bit weights."""

import copy
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from transformers import PreTrainedTokenizerBase

from ..model.classifier import EncoderClassifier
from ..model.configuration import MultitaskConfig
from ..model.errors import InputError, check_installed, explained
from ..model.kinds import KINDS
from ..model.modeling import MultitaskBertModel
from .export import export_encoder, stock_classifier_config

OPSET = 18  # of ONNX: the oldest that PyTorch's exporter writes
BLOCK = 64  # values of a weight's column, and of a token's vector, that share a scale in 8 bits
INT8 = 4  # "accuracy level" of a product whose inputs are quantised too
TOLERANCE = 1e-4  # of a logit, relative and absolute: runtimes sum in another order
# Batches to trace a graph with, and to compare it on: a row alone, and rows of different length.
TRACED = ["a", "a b c d"]
COMPARED = (["a b"], ["a b c d e f g", "a", "a b"])


class Graph(nn.Module):
    """One task, from tokens to its answer, in the form that is traced. The encoder is Transformers' own with the same
    weights: minBERT removes padding, so its graph would fit one batch alone.

    Args:
        task: name of one of the model's tasks.
        tokenizer: the model's; the graph's inputs are what it gives.

    Attributes:
        classifier: the task, on the CPU, in evaluation mode.
        inputs: names of the inputs.
        outputs: names of the outputs.

    Raises:
        InputError: the model has no such task.
    """

    def __init__(self, model: MultitaskBertModel, task: str, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        encoder, spec = export_encoder(model, task), model.tasks[task]
        layout = {"pair_encoding": model.config.pair_encoding, "pooling": model.config.pooling}
        layout["attn_implementation"] = "eager"  # plain operations; of the fused one a graph has more nodes
        config = MultitaskConfig(text_config=encoder.config, tasks=[spec.to_config()], **layout)
        self.classifier = EncoderClassifier(config, encoder)
        self.classifier.heads[task].load_state_dict(model.heads[task].state_dict())
        known = ("input_ids", "attention_mask", "token_type_ids")
        self.inputs = [name for name in tokenizer.model_input_names if name in known]
        self.tokenizer = tokenizer
        self.eval()
        self.outputs = list(self(**self.tokens(TRACED)))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Answer a batch; the arguments are those of `OneTask.forward`.

        Returns:
            `logits` as a stock classifier gives them (`Kind.stock_logits`); and `probabilities` of the labels,
            (B, C) or (B, L, C), or `score` (B,), on the task's own scale.
        """
        task = self.classifier.task
        kind, logits = KINDS[task.kind], self.classifier.task_logits(input_ids, attention_mask, token_type_ids)
        probabilities = kind.probabilities(logits)
        answer = {kind.decision: logits} if probabilities is None else {"probabilities": probabilities}
        return {"logits": kind.stock_logits(task, logits)} | answer

    def tokens(self, texts: list[str]) -> dict[str, Tensor]:
        """A batch of the graph's inputs, padded on the right; of a pair task each text is its own second one."""
        columns = [texts] * (1 + (self.classifier.task.text_pair is not None))
        batch = self.tokenizer(*columns, padding=True, padding_side="right", return_tensors="pt")
        return {name: batch[name] for name in self.inputs}

    @torch.inference_mode()
    def check(self, run: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
        """Check that an exported graph gives this module's answers.

        Args:
            run: the exported graph: {input: values} -> {output: values}.

        Raises:
            InputError: it gives others.
        """
        for texts in COMPARED:
            batch = self.tokens(texts)
            given, expected = run(batch), self(**batch)
            for name, values in expected.items():
                if not torch.allclose(given[name], values, rtol=TOLERANCE, atol=TOLERANCE):
                    far = (given[name] - values).abs().max()
                    raise InputError(f"{self.describe()}: the graph's {name} are {far:.1e} from the model's")

    def describe(self) -> str:
        """The task and the architecture of its encoder, for messages."""
        return f"task {self.classifier.task.name!r} ({self.classifier.config.text_config.model_type})"


def trace(graph: Graph) -> ExportedProgram:
    """A graph for batches of any number of rows and tokens, by `torch.export`.

    Raises:
        InputError: PyTorch cannot trace the encoder or the head, or what it traced computes something else.
    """
    batch = graph.tokens(TRACED)
    shapes = {name: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for name in batch}
    with explained(f"{graph.describe()}: torch.export cannot trace it"), torch.no_grad():
        program = torch.export.export(graph, (), batch, dynamic_shapes=shapes, strict=False)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if hasattr(part, "graph") else ():
            node.meta.pop("stack_trace", None)  # it names files of this machine
    module = program.module()
    graph.check(lambda inputs: module(**inputs))
    return program


def write_torch(graph: Graph, folder: Path) -> Path:
    """Write `model.pt2`, which `torch.export.load` reads; raises as `trace` does."""
    torch.export.save(trace(graph), folder / "model.pt2")
    return folder / "model.pt2"


def write_onnx(graph: Graph, folder: Path) -> Path:
    """Write `model.onnx`, for batches of any number of rows and tokens.

    Raises:
        InputError: as `trace`; PyTorch cannot convert the graph; or ONNX Runtime does not give the model's answers.
    """
    program, axes, path = trace(graph), {0: "batch", 1: "length"}, folder / "model.onnx"
    settings = {"opset_version": OPSET, "dynamo": True, "verbose": False, "output_names": graph.outputs}
    with explained(f"{graph.describe()}: cannot be written as ONNX"), no_warnings():
        converted = torch.onnx.export(program, dynamic_shapes=dict.fromkeys(graph.inputs, axes), **settings)
    converted.save(path)
    graph.check(OnnxSession(path))
    return path


@contextmanager
def no_warnings() -> Iterator[None]:
    """Silence exporters, which warn of optional packages that are not installed and of their own code, and would set up
    the root logger."""
    root, disabled, held = logging.getLogger(), logging.root.manager.disable, logging.NullHandler()
    root.addHandler(held)  # `logging.basicConfig` does nothing where a handler is
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
        root.removeHandler(held)


class OnnxSession:
    """An ONNX file in ONNX Runtime, on the CPU, with as many threads as PyTorch has."""

    def __init__(self, path: Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{input: values} -> {output: values}."""
        found = self.session.run(self.outputs, {name: values.numpy() for name, values in inputs.items()})
        return dict(zip(self.outputs, map(torch.from_numpy, found), strict=True))


def write_int8(path: Path) -> Path:
    """Write an ONNX model with 8-bit weights: `model_quantized.onnx`, the name that Optimum and Transformers.js use.

    A matrix product multiplies 8-bit weights and inputs with a scale for each `BLOCK` values of both (ONNX Runtime's
    operator `MatMulNBits`). The usual `quantize_dynamic` has one scale for the inputs of a whole batch, which a few
    large activations make coarse; it is used for the embeddings alone, which have no inputs.
    """
    with no_warnings():
        from onnxruntime.quantization import quantize_dynamic
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        products = MatMulNBitsQuantizer(str(path), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8)
        products.process()
        smaller = path.with_stem("model_quantized")
        quantize_dynamic(products.model.model, smaller, op_types_to_quantize=["Gather"])
    return smaller


WRITERS: dict[str, Callable[[Graph, Path], Path]] = {"onnx": write_onnx, "pt2": write_torch}
"""{format: the function that writes a graph into a folder}."""


def check_packages(form: str) -> None:
    """Raises InputError if a package that the format needs is missing."""
    for package in ("onnx", "onnxscript", "onnxruntime") if form == "onnx" else ():
        check_installed(package, "onnx", "ONNX")


def export_graph(
    model: MultitaskBertModel,
    task: str,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike,
    form: str = "onnx",
    *,
    int8: bool = False,
    max_length: int | None = None,
) -> list[Path]:
    """Write one task as a graph. Beside it go the tokenizer, which cuts rows as in training and pads on the right, and
    config.json with the labels' names, where Optimum looks for them.

    Args:
        model: a model that has the task.
        task: name of the task.
        tokenizer: the model's.
        folder: the folder to write.
        form: "onnx" or "pt2".
        int8: of ONNX, whether to write a model with 8-bit weights beside it.
        max_length: tokens that a row may have; by default as the tokenizer has it.

    Returns:
        The graphs' files.

    Raises:
        InputError: the model has no such task, a package is missing, or the task cannot be exported.
    """
    check_packages(form)
    graph, folder, spec = Graph(model, task, tokenizer), Path(folder), model.tasks[task]
    folder.mkdir(parents=True, exist_ok=True)
    files = [WRITERS[form](graph, folder)]
    if int8:
        files.append(write_int8(files[0]))
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = min(max_length or tokenizer.model_max_length, model.config.max_position_embeddings)
    tokenizer.padding_side, tokenizer.truncation_side = "right", "left" if spec.truncation == "tail" else "right"
    tokenizer.save_pretrained(folder)
    config = stock_classifier_config(model, task)
    config.problem_type = KINDS[spec.kind].problem_type
    config.save_pretrained(folder)
    return files
