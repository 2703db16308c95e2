"""The parent's side of one peer's process: start it, ask it, watch its memory, end it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from memory_limit import Limit, limited

BENCHMARKS = Path(__file__).resolve().parent.parent
SAMPLE_S = 0.05
END_LIMIT_S = 10.0
STATUS_NAMES = {"VmHWM": "peak_bytes", "RssAnon": "own_bytes", "RssFile": "mapped_bytes"}


class PeerError(Exception):
    """What a peer answered in place of figures, or how its process ended."""


@dataclass(slots=True, kw_only=True)
class PeerProcess:
    """A running peer.

    Attributes:
        process: the process.
        limit: the memory limit that it is under.
        log: the file with what it writes to standard error.
        memory: the greatest figures so far: of the process's own memory (anonymous), of mapped files, and of
            both together at one time (the kernel's high-water mark).
    """

    process: subprocess.Popen[bytes]
    limit: Limit
    log: Path
    memory: dict[str, int] = field(default_factory=dict)

    def ask(self, do: str, *, seconds: float, **arguments: Any) -> dict[str, Any]:
        """Send one request and return the figures of the answer.

        Raises:
            PeerError: the answer is an error, there is none within `seconds`, or the process has ended.
        """
        try:
            self._send(json.dumps({"do": do, **arguments}).encode() + b"\n")
            answer = json.loads(self._line(monotonic() + seconds))
        except (BrokenPipeError, json.JSONDecodeError):
            raise PeerError(self._how_it_ended()) from None
        if "error" in answer:
            raise PeerError(answer["error"])
        found: dict[str, Any] = answer["ok"]
        return found

    def _send(self, line: bytes) -> None:
        """Write `line` without Python's buffer, which would try to write it once more when it is closed."""
        assert self.process.stdin is not None
        while line:
            line = line[os.write(self.process.stdin.fileno(), line) :]

    def _line(self, ends_at_s: float) -> bytes:
        """Return the answer's line, empty at the end of the process; memory is sampled while waiting."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not selector.select(SAMPLE_S):
                self._sample()
                if monotonic() > ends_at_s:
                    self.process.kill()
                    raise PeerError("no answer within the time limit")
        self._sample()
        return self.process.stdout.readline()

    def _sample(self) -> None:
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name in STATUS_NAMES:
                key = STATUS_NAMES[name]
                self.memory[key] = max(self.memory.get(key, 0), int(value.split()[0]) * 1024)

    def _how_it_ended(self) -> str:
        try:
            # a process of much memory takes its time to go
            status = self.process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "it wrote something that is no answer"
        if status >= 0:
            return f"the process ended with status {status}: {self._last_words()}"
        name = signal.Signals(-status).name
        if status == -signal.SIGKILL and self.limit.num_bytes:
            return f"killed: it needs more than the limit of {self.limit.num_bytes / 1024**3:.2f} GiB"
        return f"the process was ended by {name}"

    def _last_words(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it wrote nothing"


@contextmanager
def running_peer(
    peer: str, python: Path, log: Path, limit_bytes: int | None = None, label: str = ""
) -> Iterator[PeerProcess]:
    """Yield the process of a peer, in its own environment and under a memory limit of its own."""
    with limited(limit_bytes, label=label) as limit, log.open("ab") as errors:
        command = [str(python), "-m", "peers.worker", json.dumps({"peer": peer, "limit": asdict(limit)})]
        # what this process finds beside its packages is not for another environment
        own = os.environ.get("PYTHONPATH", "") if python == Path(sys.executable) else ""
        paths = [str(BENCHMARKS), *filter(None, [own])]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=BENCHMARKS,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **CALM},
        )
        try:
            yield PeerProcess(process=process, limit=limit, log=log)
        finally:
            process.kill()
            process.wait()


CALM = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # as the command `layerstream` sets it: torch's threads sleep while they wait for weights
    "GOMP_SPINCOUNT": "10000",
}
