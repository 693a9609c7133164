"""Export one task of a trained run as a model that Transformers loads without this package, or as a graph.

    bert-multitask export RUN --task sst --output_dir OUT              # for pipeline("text-classification", OUT)
    bert-multitask export RUN --task sst --encoder --output_dir OUT    # for AutoModel.from_pretrained(OUT)
    bert-multitask export RUN --task sst --format onnx --output_dir OUT           # model.onnx, for ONNX Runtime
    bert-multitask export RUN --task sst --format onnx --int8 --output_dir OUT    # model_quantized.onnx beside it
    bert-multitask export RUN --task sst --format pt2 --output_dir OUT            # model.pt2, for torch.export.load

RUN is a run folder, a Hub id or package:NAME/PATH. docs/reuse.md says which way of reuse is for what.
"""

import argparse

from transformers import PreTrainedTokenizerBase

from ..inference.export import export_classifier, export_encoder
from ..inference.graph import WRITERS, check_packages, export_graph
from ..inference.trained_run import TrainedRun
from ..model.encoder import share_weights
from ..model.errors import InputError
from ..model.kinds import KINDS
from ..model.modeling import MultitaskBertModel
from .command_line import CommandParser, new_folder


def main(argv: list[str]) -> None:
    """Export, as a command line says."""
    parser = CommandParser("export", __doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, Hub id or package:NAME/PATH")
    parser.add_argument("--task", required=True, help="one of the run's tasks")
    parser.add_argument("--encoder", action="store_true", help="its encoder alone, without the head")
    parser.add_argument("--format", choices=("transformers", *WRITERS), default="transformers", help="what is written")
    parser.add_argument("--int8", action="store_true", help="of ONNX also a model with weights of 8 bits")
    parser.add_argument("--output_dir", type=new_folder, required=True, help="folder to write; new, or an empty one")
    options = parser.parse_args(argv)
    if options.int8 and options.format != "onnx":
        raise InputError(f"--int8 is of --format onnx, not {options.format}")
    if options.encoder and options.format != "transformers":
        raise InputError(f"--encoder is of --format transformers, not {options.format}")
    check_packages(options.format)
    run = TrainedRun.open(options.run)
    model, tokenizer = run.load_model(), run.load_tokenizer()
    if options.format == "transformers":
        export_stock(options, model, tokenizer)
    else:
        form, how = options.format, {"int8": options.int8, "max_length": run.max_length}
        for path in export_graph(model, options.task, tokenizer, options.output_dir, form, **how):
            print(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if prompt := model.tasks[options.task].prompt:
        print(f"put its prompt before the text yourself: {prompt!r} (docs/encoders.md)")


def export_stock(options: argparse.Namespace, model: MultitaskBertModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a folder that Transformers loads, and print the line that does."""
    task = options.task
    exported = export_encoder(model, task) if options.encoder else export_classifier(model, task, tokenizer)
    exported.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)
    share_weights(options.output_dir)
    trust = ", trust_remote_code=True" if hasattr(exported.config, "auto_map") else ""
    if options.encoder:
        print(f'AutoModel.from_pretrained("{options.output_dir}")')
    else:
        spec = model.tasks[task]
        row = '{"text": "…", "text_pair": "…"}' if spec.text_pair else '"…"'
        print(f'pipeline("{KINDS[spec.kind].pipeline}", "{options.output_dir}"{trust})({row})')
        if note := KINDS[spec.kind].export_note(spec):
            print(note)
