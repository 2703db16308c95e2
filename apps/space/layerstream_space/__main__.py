"""`layerstream-space` and `python -m layerstream_space`: serve the page on this machine."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from . import __version__
from .settings import PUBLIC_LIMITS, Limits, Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until it is interrupted.

    Args:
        arguments: the command line after the program's name; by default the process's own.

    Returns:
        The exit status: 0, or 2 if the address cannot be used. An invalid option exits with status 2 as well.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = Settings(
        models=tuple(options.model or ()),
        budget=options.budget,
        any_model=options.any_model,
        is_public=options.public,
        in_process=options.in_process,
        limits=PUBLIC_LIMITS if options.public else Limits(),
    )
    # gradio takes seconds to import: --help, --version and a mistyped option do not wait for it
    serving = importlib.import_module(".serve", __package__)
    if problem := serving.problem_with(settings, options.host):
        parser.error(problem)
    status: int = serving.serve(settings, host=options.host, port=options.port, opens_browser=options.open)
    return status


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text} is not a port: give a number from 1 to 65535")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layerstream-space", description="Compare one prompt across model variants in a browser."
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 opens it to the network"
    )
    parser.add_argument(
        "--port", type=_port, default=None, help="port to listen on; by default the first free one from 7860"
    )
    parser.add_argument(
        "--model",
        action="append",
        help="directory or Hub id of a model; repeat it for several; by default a small chat model",
    )
    parser.add_argument(
        "--budget",
        default="100 MiB",
        help="initial memory budget of the streamed model: min, or a size such as 100 MiB",
    )
    parser.add_argument(
        "--any-model",
        action="store_true",
        help="let visitors name any model or directory; for private use only",
    )
    parser.add_argument(
        "--public", action="store_true", help="apply the limits of a page that anyone can open"
    )
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="run models in this process, for hosts where child processes cannot",
    )
    parser.add_argument("--version", action="version", version=f"layerstream-space {__version__}")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser


if __name__ == "__main__":
    sys.exit(main())
