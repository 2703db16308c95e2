"""Serves a fake service in a process of its own: `python -m kit.serve_fake DRAIN_S`.

Test kit. Each line of standard input allows as many sweeps as it says; standard output gets the address, and
in the end how many requests were answered.
"""

from __future__ import annotations

import sys
import threading

from kit.fake_service import FakeService
from layerstream.server.app import build_app
from layerstream.server.run import ServingOptions, serve
from layerstream.server.settings import ServerSettings


def main() -> None:
    """Serve until a signal ends it."""
    service = FakeService(sweeps=0)
    threading.Thread(target=allow_sweeps, args=(service,), daemon=True).start()
    app = build_app(service, settings=ServerSettings())
    serve(app, service, port=0, options=ServingOptions(drain_s=float(sys.argv[1])), on_ready=tell)
    tell(f"closed after {service.status().answered} answers")


def allow_sweeps(service: FakeService) -> None:
    """Allow the sweeps that standard input asks for."""
    for line in sys.stdin:
        service.allow_sweeps(int(line))


def tell(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
