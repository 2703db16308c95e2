"""What a peer's process is asked and answers: one line of JSON each. Python's own library is all it needs.

A request has `do` and its arguments; the answer has `ok` with figures, or `error` with the error's text.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, TextIO

Prompts = list[list[int]]

LONGEST_ERROR = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """What a peer is to load.

    Attributes:
        model: the folder of the checkpoint.
        scratch: a folder for the peer's own files; a later process of the same peer finds them again.
        keep: `"nothing"` (no decoder block stays in memory), `"half"` (of them), or `"limit"` (as many as the
            memory limit allows).
        variant: the peer's own way of reading, where it has several; otherwise empty.
        limit_bytes: the memory limit of this process; 0 without one.
        num_blocks: decoder blocks of the model.
        block_bytes: bytes of all of them.
        batch_size: prompts that run together at most.
        prompt_tokens: tokens of the longest prompt.
        new_tokens: tokens that are generated for each prompt.
    """

    model: str
    scratch: str
    keep: str
    variant: str
    limit_bytes: int
    num_blocks: int
    block_bytes: int
    batch_size: int
    prompt_tokens: int
    new_tokens: int


class Peer(Protocol):
    """One way to run a model, greedily, one token for every sequence in each pass."""

    def load(self, spec: LoadSpec) -> dict[str, Any]:
        """Load the model; return `second_copy_bytes` and `second_copy_s` if one was written, and notes."""

    def start(self, prompts: Prompts) -> list[int]:
        """Forget earlier sequences, run the prompts, and return the next token of each."""

    def step(self, tokens: list[int]) -> list[int]:
        """Append one token to every sequence and return the next of each."""

    def drop_caches(self) -> None:
        """Drop what the operating system has cached of the peer's weights."""


def take_output() -> TextIO:
    """Return standard output for answers alone; from now on, what a library prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # the log is read while this process goes on
    return answers


def serve(make_peer: Callable[[], Peer]) -> None:
    """Answer requests from standard input until it ends; `make_peer` may import what prints."""
    answers = take_output()
    peer = make_peer()
    for line in sys.stdin:
        request = json.loads(line)
        action = ACTIONS[request.pop("do")]
        try:
            answer = {"ok": action(peer, **request)}
        except Exception as error:  # noqa: BLE001 - the parent's table shows it
            traceback.print_exc()
            answer = {"error": error_text(error)}
        print(json.dumps(answer), file=answers, flush=True)


def load(peer: Peer, spec: dict[str, Any]) -> dict[str, Any]:
    """Load the model and return the seconds of that, without those of writing a second copy."""
    start_s = perf_counter()
    facts = peer.load(LoadSpec(**spec))
    return {"load_s": perf_counter() - start_s - facts.get("second_copy_s", 0.0), **facts}


def generate(peer: Peer, prompts: Prompts, new_tokens: int, cold_passes: int) -> dict[str, Any]:
    """Return each prompt's tokens, and each pass's seconds and bytes read; the first pass is the prompts'.

    Args:
        peer: the peer, loaded.
        prompts: all of them run together.
        new_tokens: number of passes.
        cold_passes: before how many of the passes, from the first on, the page cache is dropped, untimed.
    """
    tokens: list[int] = []
    answers: Prompts = [[] for _ in prompts]
    seconds, read_bytes = [], []
    for number in range(new_tokens):
        if number < cold_passes:
            peer.drop_caches()
        before_bytes, start_s = disk_bytes(), perf_counter()
        tokens = peer.step(tokens) if tokens else peer.start(prompts)
        seconds.append(perf_counter() - start_s)
        read_bytes.append(disk_bytes() - before_bytes)
        for answer, token in zip(answers, tokens, strict=True):
            answer.append(token)
    return {"tokens": answers, "seconds": seconds, "read_bytes": read_bytes}


def generate_many(peer: Any, prompts: Prompts, new_tokens: int) -> dict[str, Any]:
    """Return the same, of the peer's own function for many prompts: one entry of seconds for all passes."""
    peer.drop_caches()
    before_bytes, start_s = disk_bytes(), perf_counter()
    tokens = peer.generate_many(prompts, new_tokens)
    seconds = perf_counter() - start_s
    return {"tokens": tokens, "seconds": [seconds], "read_bytes": [disk_bytes() - before_bytes]}


ACTIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "load": load,
    "generate": generate,
    "generate_many": generate_many,
}


def disk_bytes() -> int:
    """Return the bytes that this process has had read from a disk so far, by page faults too."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def error_text(error: BaseException) -> str:
    """Return type and message of an error in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= LONGEST_ERROR else text[: LONGEST_ERROR - 1] + "…"


def write_second_copy(folder: Path, write: Callable[[], object]) -> dict[str, Any]:
    """Have a peer write its copy of the weights to `folder`, once, and return its bytes and seconds.

    The seconds are 0 where the copy is already there.
    """
    note = folder.with_name(folder.name + ".json")
    if note.exists():
        return {**json.loads(note.read_text()), "second_copy_s": 0.0}
    start_s = perf_counter()
    write()
    seconds = perf_counter() - start_s
    num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    facts = {"second_copy_bytes": num_bytes, "second_copy_written_s": seconds}
    note.write_text(json.dumps(facts))
    return {**facts, "second_copy_s": seconds}
