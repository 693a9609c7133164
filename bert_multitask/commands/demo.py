"""Try a trained run on a page in the browser, or two side by side.

    bert-multitask demo RUN
    bert-multitask demo RUN RUN2

RUN is a run folder, a Hub id or package:NAME/PATH. The page has a tab for each task, and ends with Ctrl-C. Gradio's
variables say where it is served: GRADIO_SERVER_NAME (127.0.0.1), GRADIO_SERVER_PORT (the first free from 7860 on) and
GRADIO_SHARE (docs/serve.md).
"""

from pathlib import Path

from ..inference.demo_page import build_page, launch_options
from ..model.errors import InputError
from .command_line import CommandParser


def main(argv: list[str]) -> None:
    """Serve the page, as a command line says."""
    parser = CommandParser("demo", __doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="one run or two")
    options = parser.parse_args(argv)
    if len(options.runs) > 2:
        raise InputError(f"{len(options.runs)} runs; the page has room for two side by side")
    titles = [Path(name).name for name in options.runs]
    titles = titles if all(titles) and len({*titles}) == len(titles) else options.runs
    build_page(dict(zip(titles, options.runs, strict=True))).launch(**launch_options())
