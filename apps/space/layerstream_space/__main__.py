"""`python -m layerstream_space`: serve the page on this machine."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence

from layerstream_compare import CompareError, Experiment

from .settings import PUBLIC_LIMITS, Limits, Settings
from .ui.page import launch_options, make_page
from .ui.services import make_services


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until it is interrupted.

    Args:
        arguments: the command line after the program's name; by default the process's own.

    Returns:
        The exit status: 0, or 2 if the address cannot be used. An invalid option exits with status 2 as well.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if problem := _problem(options):
        parser.error(problem)
    settings = Settings(
        models=tuple(options.model or ()),
        budget=options.budget,
        any_model=options.any_model,
        is_public=options.public,
        in_process=options.in_process,
        limits=PUBLIC_LIMITS if options.public else Limits(),
    )
    services = make_services(settings)
    page = make_page(services)
    try:
        _, address, _ = page.launch(
            server_name=options.host,
            server_port=options.port,
            prevent_thread_lock=True,
            inbrowser=options.open,
            **launch_options(),
        )
        sys.stdout.write(f"layerstream is open at {address}\n")
        sys.stdout.flush()
        page.block_thread()
    except OSError as error:
        sys.stderr.write(f"error: cannot serve the page: {error}; choose another --port\n")
        return 2
    finally:
        services.planner.close()
    return 0


def _problem(options: argparse.Namespace) -> str:
    """Return what is wrong with the options; empty if nothing is."""
    try:
        for model in options.model or ("default",):
            Experiment(model=model, prompt="-", variants=("streamed",), budget=options.budget)
    except CompareError as error:
        return str(error)
    try:
        # on an address of another machine, gradio would try a hundred ports one after another
        socket.create_server(
            (options.host, 0), family=socket.AF_INET6 if ":" in options.host else socket.AF_INET
        ).close()
    except OSError:
        return (
            f"--host {options.host} is not an address of this machine; use 127.0.0.1 for this machine alone, "
            "or 0.0.0.0 to open the page to the network"
        )
    return ""


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text} is not a port: give a number from 1 to 65535")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layerstream_space", description="Compare one prompt across model variants in a browser."
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
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser


if __name__ == "__main__":
    sys.exit(main())
