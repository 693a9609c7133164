"""Report a run, an ensemble or a prediction table: one HTML file, and Markdown with its pictures.

    bert-multitask report RUN
    bert-multitask report RUN OTHER_RUN --output_dir OUT             # and a paired test of the two
    bert-multitask report FOLDER_OF_TABLES --data_dir DATA

RUN is a run folder, a Hub id, a folder of prediction files, or one such file. docs/report.md says what is in it.
"""

from ..model.errors import InputError
from ..reporting.report import write_report
from .command_line import CommandParser, add_row_flags, local_path


def main(argv: list[str]) -> None:
    """Report, as a command line says."""
    parser = CommandParser("report", __doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, Hub id, folder of prediction files, or one such file")
    parser.add_argument("other", metavar="OTHER", nargs="?", help="the same, to compare with")
    add_row_flags(parser)
    parser.add_argument("--split", choices=["dev", "test"], default="dev", help="which predictions")
    parser.add_argument("--output_dir", type=local_path, help="folder to write; by default RUN/report")
    options = parser.parse_args(argv)
    path = local_path(options.run)
    if not (options.output_dir or path.exists()):
        raise InputError(f"{path}: no such file or folder; a report of a Hub id or a package needs --output_dir")
    output_dir = options.output_dir or (path if path.is_dir() else path.parent) / "report"
    write_report(options.run, output_dir, options.other, options.data_dir, options.tasks, options.split)
    print(f"report: {output_dir / 'report.html'} and {output_dir / 'report.md'}")
