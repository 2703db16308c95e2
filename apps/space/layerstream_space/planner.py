"""The planner's child: asks layerstream for plans without loading torch into this process.

One child, started at the first question and kept warm; questions wait for one another. It knows lines of JSON; what they mean is
`planning_worker`'s. The child ends when this process does: its standard input closes.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .errors import VisitorError

WORKER_COMMAND = (sys.executable, "-m", "layerstream_space.planning_worker")
ANSWER_WITHIN_S = 90.0
_READ_BYTES = 65536


class Planner:
    """Questions to layerstream's planner, answered by a child process."""

    def __init__(
        self, command: Sequence[str] = WORKER_COMMAND, *, answer_within_s: float = ANSWER_WITHIN_S
    ) -> None:
        """Prepare; the child starts at the first question.

        Args:
            command: the child's program.
            answer_within_s: a question that takes longer ends the child, so that a monstrous config holds nobody up.
        """
        self._command = tuple(command)
        self._answer_within_s = answer_within_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        # visitors name models by Hub ids: in an empty folder no id is a path
        self._folder = tempfile.TemporaryDirectory(prefix="layerstream-planner-")
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="planner")

    def ask(self, question: str, *, within_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Return the child's answer.

        Args:
            question: an operation of the worker.
            within_s: seconds to wait; the planner's own by default.
            **arguments: of the operation, as JSON-ready values.

        Raises:
            VisitorError: what is wrong with the question, or that it took too long.
        """
        line = json.dumps({"question": question, **arguments}).encode() + b"\n"
        with self._lock:
            try:
                answer = self._exchange(line, time.monotonic() + (within_s or self._answer_within_s))
            except (OSError, ValueError, EOFError) as error:
                self._end()
                raise VisitorError(
                    "the planner stopped at this question; try again, or ask for a smaller model"
                ) from error
        if "error" in answer:
            raise VisitorError(str(answer["error"]))
        return answer

    def submit(
        self, question: str, *, within_s: float | None = None, **arguments: Any
    ) -> Future[dict[str, Any]]:
        """Ask without waiting; the future's result, or error, is that of `ask`."""
        return self._pool.submit(self.ask, question, within_s=within_s, **arguments)

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._folder.cleanup()

    def _exchange(self, line: bytes, deadline: float) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(line)
        process.stdin.flush()
        told = b""
        while not told.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
                self._end()
                raise VisitorError(
                    "the planner took too long over this and was stopped; ask for a smaller model"
                )
            chunk = os.read(process.stdout.fileno(), _READ_BYTES)
            if not chunk:
                raise EOFError("the planner's child ended")
            told += chunk
        answer: dict[str, Any] = json.loads(told)
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self._folder.name,
                start_new_session=True,
                env={**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": _python_path()},
            )
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _python_path() -> str:
    """Return where the child finds this package from its empty folder: in a Space it is not installed, it lies beside app.py."""
    beside = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join([beside, *filter(None, [os.environ.get("PYTHONPATH", "")])])
