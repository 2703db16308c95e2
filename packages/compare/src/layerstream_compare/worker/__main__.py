"""The worker's process: `python -m layerstream_compare.worker --events-fd N` reads a case from standard input and runs it.

It knows the pipe and its end; what is measured is `run`'s business.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from ..case import Case
from ..events import worker_line
from .lifeline import end_with_reader


def main() -> None:
    """Run the case on standard input and write its events, a line each, to the file descriptor `--events-fd`."""
    parser = argparse.ArgumentParser(description="run one case of layerstream-compare")
    parser.add_argument("--events-fd", type=int, required=True, help="an open file descriptor for JSON lines")
    events_fd = parser.parse_args().events_fd
    end_with_reader(events_fd)
    # after the lifeline: importing torch takes seconds, in which the parent may be gone
    run_case = importlib.import_module(".run", __package__).run_case
    # never closed before the process ends: the lifeline watches it
    with os.fdopen(events_fd, "w", encoding="utf-8", buffering=1, closefd=False) as pipe:
        run_case(Case.from_json(sys.stdin.read()), lambda kind, **data: _write(pipe.write, kind, data))
    sys.stdout.flush()
    sys.stderr.flush()
    # everything is told and closed; taking the libraries down in order takes another second of everybody's time
    os._exit(0)


def _write(write: Callable[[str], int], kind: str, data: dict[str, Any]) -> None:
    write(worker_line(kind, **data))


if __name__ == "__main__":
    main()
