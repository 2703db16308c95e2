"""Run a worker process: `python -m layerstream_compare.worker --events-fd N`, with a case on standard input.

It handles the pipes and the exit; `run` does the measuring. With `--go-fd N` it is a spare: it does its
imports and waits for a byte on that descriptor before it reads its case.
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
from .parent_watch import exit_with_reader


def main() -> None:
    """Run the case on standard input and write its events as lines to the file descriptor `--events-fd`."""
    parser = argparse.ArgumentParser(description="Run one case of layerstream-compare.")
    parser.add_argument("--events-fd", type=int, required=True, help="open file descriptor for JSON lines")
    parser.add_argument("--go-fd", type=int, help="open file descriptor: a byte says that the case is there")
    options = parser.parse_args()
    events_fd = options.events_fd
    exit_with_reader(events_fd)
    # only now: importing torch takes seconds, and the parent may disappear meanwhile
    run_case = importlib.import_module(".run", __package__).run_case
    if options.go_fd is not None:
        if not os.read(options.go_fd, 1):
            return  # the parent has no case for this spare, or is gone
        os.close(options.go_fd)
    # kept open until the process exits: the watching thread polls it
    with os.fdopen(events_fd, "w", encoding="utf-8", buffering=1, closefd=False) as pipe:
        run_case(Case.from_json(sys.stdin.read()), lambda kind, **data: _write(pipe.write, kind, data))
    sys.stdout.flush()
    sys.stderr.flush()
    # everything is written; an orderly shutdown of the libraries would take another second
    os._exit(0)


def _write(write: Callable[[str], int], kind: str, data: dict[str, Any]) -> None:
    write(worker_line(kind, **data))


if __name__ == "__main__":
    main()
