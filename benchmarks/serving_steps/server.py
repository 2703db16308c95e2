"""Start, watch and end the server: the real command, in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import psutil
from peers.process import CALM
from read_limit import ReadLimit

COMMAND = (sys.executable, "-m", "layerstream", "serve")
MODEL_NAME = "served"

START_S = 180.0
END_S = 60.0
_POLL_S = 0.02
_ANNOUNCED = re.compile(r"serving at (http://\S+?)/v1")
_LEDGER_LINE = re.compile(r"^\s+(predicted peak|budget)\s.*?([\d,]+) B$", re.MULTILINE)
_MEMORY = re.compile(r"^(VmHWM|VmRSS|RssFile):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """How a server is started.

    Attributes:
        model: the checkpoint's folder.
        folder: where it keeps files and batches.
        log: the file with what it writes.
        options: further options of the command.
        reads: a limit on its reads.
    """

    model: Path
    folder: Path
    log: Path
    options: tuple[str, ...] = ()
    reads: ReadLimit = field(default_factory=ReadLimit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a server's process holds; mapped are the pages of files, such as its libraries' code."""

    num_threads: int
    num_descriptors: int
    resident_bytes: int
    mapped_bytes: int
    peak_bytes: int


class Server:
    """A server's process.

    Attributes:
        process: the process.
    """

    def __init__(self, spec: Spec) -> None:
        """Start it; `wait` waits until it answers."""
        self._log = spec.log
        self._log_begins_at = spec.log.stat().st_size if spec.log.exists() else 0
        command = [*COMMAND, str(spec.model), "--port", "0", "--folder", str(spec.folder)]
        with spec.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--name", MODEL_NAME, "--device", "cpu", *spec.options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # wide enough that no line of the plan is folded
                env={**os.environ, **CALM, "COLUMNS": "200"},
            )
        if spec.reads.group:
            # it reads no weights yet
            Path(spec.reads.group, "cgroup.procs").write_text(str(self.process.pid))

    def wait(self) -> str:
        """Return its address, once it answers.

        Raises:
            RuntimeError: it ended, or did not answer in time.
        """
        ends_at_s = monotonic() + START_S
        while not (found := _ANNOUNCED.search(self.words())):
            if self.process.poll() is not None or monotonic() > ends_at_s:
                raise RuntimeError(f"the server does not answer: {self.words()[-2000:]}")
            sleep(_POLL_S)
        return found[1]

    def words(self) -> str:
        """Return what it has written."""
        with self._log.open("rb") as file:
            file.seek(self._log_begins_at)
            return file.read().decode(errors="replace")

    def planned_bytes(self) -> dict[str, int]:
        """Return the plan's `predicted peak` and its `budget`."""
        return {name: int(size.replace(",", "")) for name, size in _LEDGER_LINE.findall(self.words())}

    def resources(self) -> Resources:
        """Return what the process holds now."""
        process = psutil.Process(self.process.pid)
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        sizes = {name: int(kib) * 1024 for name, kib in _MEMORY.findall(status)}
        return Resources(
            num_threads=process.num_threads(),
            num_descriptors=process.num_fds(),
            resident_bytes=sizes["VmRSS"],
            mapped_bytes=sizes["RssFile"],
            peak_bytes=sizes["VmHWM"],
        )

    def forget_peak(self) -> None:
        """Set the peak of its memory to what is resident now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def kill(self) -> None:
        """End it without a chance to clean up."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """End it as a user does; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the server did not end: {self.words()[-2000:]}") from None


@contextmanager
def running_server(spec: Spec) -> Iterator[tuple[Server, str]]:
    """Yield a server that answers, and its address; it is ended afterwards."""
    server = Server(spec)
    try:
        yield server, server.wait()
        server.end()
    finally:
        if server.process.poll() is None:
            server.kill()
