"""Small programs that follow, or violate, the worker's protocol. Each is the body of a Python program."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

PREAMBLE = """
import json, os, signal, subprocess, sys, time
case = json.loads(sys.stdin.readline())
fd = int(sys.argv[sys.argv.index("--events-fd") + 1])
pipe = os.fdopen(fd, "wb", buffering=0)
def emit(kind, **data): pipe.write((json.dumps({"kind": kind, **data}) + "\\n").encode())
RESULT = json.loads(%r)
"""

MEMORY = {
    "baseline_bytes": 300 * 1024**2,
    "held_bytes": 257 * 1024**2,
    "peak_over_baseline_bytes": 400 * 1024**2,
    "load_spike_bytes": 12 * 1024**2,
    "phases": [
        {"phase": "load", "anonymous_bytes": 500 * 1024**2, "file_bytes": 7, "peak_bytes": 700 * 1024**2},
        {"phase": "decode", "anonymous_bytes": 500 * 1024**2, "file_bytes": 7, "peak_bytes": 650 * 1024**2},
    ],
}
TIMING = {
    "load_s": 1.5,
    "first_forward_s": 0.25,
    "first_token_s": 0.21,
    "inter_token_median_s": 0.05,
    "inter_token_p95_s": 0.06,
    "tokens_per_s": 19.5,
    "cpu_s": 4.0,
    "bytes_read": 0,
    "load_average": 0.1,
    "is_noisy": False,
}
AGREEMENT = {
    "text": "answer",
    "positions": 60,
    "kl_mean": 0.02,
    "kl_p99": 0.2,
    "kl_max": 0.4,
    "reverse_kl_mean": 0.03,
    "reverse_kl_p99": 0.3,
    "reverse_kl_max": 0.5,
    "top1": 0.92,
    "top1_standard_error": 0.01,
    "max_logit_difference": 1.5,
    "perplexity_ratio": 1.01,
    "is_bit_exact": False,
}


def result(**changes: Any) -> dict[str, Any]:
    """Return the fields of a complete result."""
    fields: dict[str, Any] = {
        "prompt_tokens": 12,
        "token_ids": [1, 2, 3],
        "token_texts": ["a", " b", " c"],
        "text": "a b c",
        "memory": MEMORY,
        "timing": TIMING,
        "agreements": [AGREEMENT],
        "facts": {"margins": [0.5, 0.004, 0.3]},
    }
    return fields | changes


SUCCEEDS = """
emit("phase", phase="load")
emit("token", index=0, id=1, text="a")
emit("result", **RESULT)
"""


def worker(body: str, **changes: Any) -> tuple[str, ...]:
    """Return the command of a worker that runs `body` with `case`, `emit` and `RESULT` defined."""
    return (sys.executable, "-c", PREAMBLE % json.dumps(result(**changes)) + body)


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def wait_until_gone(pid: int) -> bool:
    """Wait until a process has ended; return whether it has. A killed orphan stays until init reaps it."""
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_running(pid)
