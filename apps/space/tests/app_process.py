"""The app as users start it: a process, its address, and its child processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


class App:
    """A running app; a context manager."""

    def __init__(
        self,
        *options: str,
        command: tuple[str, ...] = ("-m", "layerstream_space"),
        python: str = sys.executable,
    ) -> None:
        """Prepare the command; the app starts when the context is entered."""
        self._command = [python, *command, *options]
        self.address = ""

    def __enter__(self) -> App:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )
        output = ""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            output += line
            if " is open at " in line:
                self.address = line.rpartition(" ")[2].strip()
                return self
        raise AssertionError(f"the app did not start: {output}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(timeout=20)
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def pid(self) -> int:
        """The process id of the app."""
        return self._process.pid

    def workers(self) -> list[int]:
        """Return the process ids of this app's workers, which run models; a spare one does not."""
        return [pid for pid in self._all_workers() if not is_spare(pid)]

    def spares(self) -> list[int]:
        """Return the process ids of the workers that wait for a case; there is at most one."""
        return [pid for pid in self._all_workers() if is_spare(pid)]

    def _all_workers(self) -> list[int]:
        return [pid for pid in children_of(self.pid) if "layerstream_compare.worker" in command_of(pid)]

    def wait_for_spare(self, expected: bool, *, within_s: float = 60.0) -> bool:
        """Wait until there is a spare worker (or none); return False if that took too long."""
        deadline_s = time.monotonic() + within_s
        while bool(self.spares()) is not expected:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.02)
        return True

    def wait_for_workers(self, expected: bool, *, within_s: float = 60.0) -> bool:
        """Wait until there is a worker (or none); return False if that took too long."""
        deadline_s = time.monotonic() + within_s
        while bool(self.workers()) is not expected:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.02)
        return True


def children_of(pid: int) -> list[int]:
    """Return the child processes of `pid`, zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == pid and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def is_spare(pid: int) -> bool:
    """Return whether a worker waits for its case: it closes the descriptor it waits on when it has one."""
    found = re.search(r"--go-fd (\d+)", command_of(pid))
    return found is not None and Path(f"/proc/{pid}/fd/{found[1]}").is_fifo()


def command_of(pid: int) -> str:
    """Return the command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ")
    except OSError:
        return ""
