"""Take one task out of a trained run, as a model that Transformers knows by itself.

    bert-multitask export RUN --task sst --output_dir OUT              # for pipeline("text-classification", OUT)
    bert-multitask export RUN --task sst --encoder --output_dir OUT    # for AutoModel.from_pretrained(OUT)

RUN is a run folder, a Hub id or package:NAME/PATH. docs/reuse.md says which way of reuse is for what.
"""

from ..inference.export import export_classifier, export_encoder
from ..inference.trained_run import TrainedRun
from ..model.encoder import share_weights
from ..model.errors import InputError
from ..model.kinds import KINDS
from .command_line import CommandParser, local_path


def main(argv: list[str]) -> None:
    """Export, as a command line says."""
    parser = CommandParser("export", __doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, Hub id or package:NAME/PATH")
    parser.add_argument("--task", required=True, help="one of the run's tasks")
    parser.add_argument("--encoder", action="store_true", help="its encoder alone, without the head")
    parser.add_argument(
        "--output_dir", type=local_path, required=True, help="folder to write; must not exist or be empty"
    )
    options = parser.parse_args(argv)
    if options.output_dir.exists() and any(options.output_dir.iterdir()):
        raise InputError(f"--output_dir {options.output_dir} is not empty; choose another folder")
    run = TrainedRun.open(options.run)
    model, tokenizer = run.load_model(), run.load_tokenizer()
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
