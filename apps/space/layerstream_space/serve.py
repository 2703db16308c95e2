"""Serve the page on this machine: everything of `python -m layerstream_space` that needs gradio."""

from __future__ import annotations

import socket
import sys

from layerstream_compare import CompareError, Experiment

from .settings import Settings
from .ui.page import launch_options, make_page
from .ui.services import make_services


def problem_with(settings: Settings, host: str) -> str:
    """Return what is wrong with the settings, or with the address to listen on; empty if nothing is."""
    try:
        for model in settings.models or ("default",):
            Experiment(model=model, prompt="-", variants=("streamed",), budget=settings.budget)
    except CompareError as error:
        return str(error)
    try:
        # on an address of another machine, gradio would try a hundred ports one after another
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError:
        return (
            f"--host {host} is not an address of this machine; use 127.0.0.1 for this machine alone, "
            "or 0.0.0.0 to open the page to the network"
        )
    return ""


def serve(settings: Settings, *, host: str, port: int | None, opens_browser: bool) -> int:
    """Serve the page until it is interrupted.

    Args:
        settings: how the app was started.
        host: the address to listen on.
        port: the port to listen on; None is the first free one from 7860.
        opens_browser: open the page in a browser.

    Returns:
        The exit status: 0, or 2 if the address cannot be used.
    """
    services = make_services(settings)
    page = make_page(services)
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            inbrowser=opens_browser,
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
        services.readiness.close()
    return 0
