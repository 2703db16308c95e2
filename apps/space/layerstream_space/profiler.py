"""The child process that profiles models: questions and answers are lines of JSON.

There is one child. It starts with the first question and stays warm; one question is answered at a time. This
module knows lines of JSON only, their meaning is in `profiling_worker`. The child ends with this process,
because its standard input closes.
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
from pathlib import Path
from typing import Any

from .errors import VisitorError

WORKER_COMMAND = (sys.executable, "-m", "layerstream_space.profiling_worker")
ANSWER_WITHIN_S = 90.0
_READ_BYTES = 65536


class Profiler:
    """Asks a child process what this process cannot answer without torch."""

    def __init__(
        self, command: Sequence[str] = WORKER_COMMAND, *, answer_within_s: float = ANSWER_WITHIN_S
    ) -> None:
        """Prepare the child; it starts with the first question.

        Args:
            command: the child's command line.
            answer_within_s: the child is ended when a question takes longer, so that an enormous
                config does not block other visitors.
        """
        self._command = tuple(command)
        self._answer_within_s = answer_within_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        # visitors name models by Hub ids; in an empty folder, no id is also a path
        self._folder = tempfile.TemporaryDirectory(prefix="layerstream-profiler-")

    def ask(self, question: str, *, within_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Return the child's answer.

        Args:
            question: name of one of the worker's questions.
            within_s: how long to wait; by default `answer_within_s`.
            **arguments: the question's arguments, as JSON-ready values.

        Raises:
            VisitorError: the question has no answer, or took too long.
        """
        line = json.dumps({"question": question, **arguments}).encode() + b"\n"
        with self._lock:
            try:
                answer = self._exchange(line, time.monotonic() + (within_s or self._answer_within_s))
            except (OSError, ValueError, EOFError) as error:
                self._end()
                raise VisitorError(
                    "The planner stopped at this question. Try again, or ask for a smaller model."
                ) from error
        if "error" in answer:
            raise VisitorError(str(answer["error"]))
        return answer

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._end()
        self._folder.cleanup()

    def _exchange(self, line: bytes, deadline_s: float) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(line)
        process.stdin.flush()
        received = b""
        while not received.endswith(b"\n"):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
                self._end()
                raise VisitorError("The planner took too long and was stopped. Ask for a smaller model.")
            chunk = os.read(process.stdout.fileno(), _READ_BYTES)
            if not chunk:
                raise EOFError("the profiling worker ended")
            received += chunk
        answer: dict[str, Any] = json.loads(received)
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
    """Return a path with this package's folder first; in a Space the package is not installed."""
    folder = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH", "")])])
