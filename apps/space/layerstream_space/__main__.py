"""`python -m layerstream_space`: the page on this machine."""

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
        arguments: what follows the program's name; the process' own by default.

    Returns:
        The exit status: 0, or 2 where the address cannot be had or an option makes no sense.
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
        sys.stderr.write(f"error: the page cannot be served: {error}; choose another --port\n")
        return 2
    finally:
        services.planner.close()
    return 0


def _problem(options: argparse.Namespace) -> str:
    """Return what is wrong with the options; empty where nothing is."""
    try:
        for model in options.model or ("default",):
            Experiment(model=model, prompt="-", variants=("streamed",), budget=options.budget)
    except CompareError as error:
        return str(error)
    try:
        # gradio would try a hundred ports one after another on an address that is not this machine's
        socket.create_server(
            (options.host, 0), family=socket.AF_INET6 if ":" in options.host else socket.AF_INET
        ).close()
    except OSError:
        return f"--host {options.host} is no address of this machine; 127.0.0.1 is for this machine alone, 0.0.0.0 for the network"
    return ""


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text} is no port: give a number from 1 to 65535")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="layerstream_space", description="The same prompt side by side, in a browser."
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 opens it to the network"
    )
    parser.add_argument("--port", type=_port, default=None, help="by default the first free one from 7860 on")
    parser.add_argument(
        "--model",
        action="append",
        help="a directory or Hub id; give it again for more; a small chat model if none",
    )
    parser.add_argument(
        "--budget", default="100 MiB", help="the streamed column's memory at first: min, or a size"
    )
    parser.add_argument(
        "--any-model", action="store_true", help="let the page name any model or directory; for one's own use"
    )
    parser.add_argument(
        "--public", action="store_true", help="with the limits of a page that anybody can open"
    )
    parser.add_argument(
        "--in-process", action="store_true", help="run models in this process, where children may not"
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    return parser


if __name__ == "__main__":
    sys.exit(main())
