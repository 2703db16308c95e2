"""Kills a process at every single line of the store's code: `python -m kit.batch_deaths FOLDER`.

A child goes through the whole life of a batch and notes each step that was promised to be durable. It is
killed at its first line, then at its second, and so on until it is not killed any more. After each kill, the
store is opened, what was promised is compared with what is there, and the life is brought to its end.

Test kit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from layerstream.server.batches import store as store_module

from .batch_stores import StoreKit

ROOM = str(Path(store_module.__file__).parent)
NAMES = ("a", "b", "c")
STATUSES = {"a": 200, "b": 400, "c": 200}


class Death:
    """A trace that kills the process at the n-th line of the store's code.

    A line counts anew when it is reached in another way or after another promise, but not in the next round
    of a loop.
    """

    def __init__(self, lines_left: int, promises: Path) -> None:
        self._lines_left = lines_left
        self._promises = promises
        self._seen: set[tuple[Any, ...]] = set()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        """Follow the frames of the store."""
        if not frame.f_code.co_filename.startswith(ROOM):
            return None
        if event == "line":
            way = (self._promises.stat().st_size, *_way_to(frame))
            if way not in self._seen:
                self._seen.add(way)
                if len(self._seen) == self._lines_left:
                    os.kill(os.getpid(), signal.SIGKILL)
        return self


def _way_to(frame: FrameType | None) -> list[tuple[str, int]]:
    way = []
    while frame is not None:
        way.append((frame.f_code.co_qualname, frame.f_lineno))
        frame = frame.f_back
    return way


def live(folder: Path, promises: int) -> None:
    """Go through the life of one batch; note what the store has promised, as soon as it has."""

    def note(step: str, value: Any = None) -> None:
        os.write(promises, json.dumps([step, value]).encode() + b"\n")

    kit = StoreKit(folder)
    store = kit.store
    stored = kit.upload(kit.input_bytes([kit.line(name) for name in NAMES]))
    note("uploaded", stored.id)
    batch = store.batches.create(
        input_file_id=stored.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    note("created", batch.id)
    store.batches.validate(batch)
    note("checked")
    for line in store.lines.pending(9):
        assert store.lines.answer(line, STATUSES[line.custom_id], {"life": 1})
        note("answered", line.custom_id)
    store.ending.end(store.batches.get(batch.id))
    note("ended")
    store.files.delete(stored.id)
    note("deleted")
    store.close()


def check(folder: Path, promises: dict[str, list[Any]]) -> None:
    """Compare the store with the promises, bring the life to its end, and look at the result."""
    kit = StoreKit(folder)
    store = kit.store
    files = {each.id for each in store.files.page(limit=99)[0]}
    assert kit.names_on_disk() == files
    if "uploaded" in promises and not store.batches.page(limit=9)[0]:
        assert files == set(promises["uploaded"])
    batches, _ = store.batches.page(limit=9)
    assert len(batches) <= 1
    assert [batch.id for batch in batches] == promises.get("created", [batch.id for batch in batches])
    for batch in batches:
        if "checked" in promises:
            assert batch.status != "validating"
        if "ended" in promises:
            assert batch.status == "completed"
        if "deleted" in promises:
            assert batch.input_file_id not in files
        store.batches.validate(batch)
        for line in store.lines.pending(9):
            assert line.custom_id not in promises.get("answered", [])
            assert store.lines.answer(line, STATUSES[line.custom_id], {"life": 2})
        store.ending.end(store.batches.get(batch.id))
        batch = store.batches.get(batch.id)
        assert (batch.status, batch.completed, batch.failed) == ("completed", 2, 1)
        output, errors = kit.results(batch.output_file_id), kit.results(batch.error_file_id)
        assert [each["custom_id"] for each in output] == ["a", "c"]
        assert [each["custom_id"] for each in errors] == ["b"]
        for each in output + errors:
            if each["custom_id"] in promises.get("answered", []):
                assert each["response"]["body"] == {"life": 1}
    assert kit.names_on_disk() == {each.id for each in store.files.page(limit=99)[0]}
    store.close()


def read_promises(path: Path) -> dict[str, list[Any]]:
    """Return what was promised, step by step."""
    promises: dict[str, list[Any]] = {}
    for line in path.read_text().splitlines():
        step, value = json.loads(line)
        promises.setdefault(step, []).append(value)
    return promises


def main(folder: Path) -> None:
    """Kill at every line; print how often that was, and at which steps."""
    steps: dict[str, int] = {}
    for lines_left in range(1, 100_000):
        place, log = folder / str(lines_left), folder / f"{lines_left}.log"
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        child = os.fork()
        if child == 0:
            sys.settrace(Death(lines_left, log))
            live(place, descriptor)
            os._exit(0)
        os.close(descriptor)
        _, status = os.waitpid(child, 0)
        promises = read_promises(log)
        check(place, promises)
        shutil.rmtree(place)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL, f"the child failed at line {lines_left}"
        last = list(promises)[-1] if promises else "nothing"
        steps[last] = steps.get(last, 0) + 1
    sys.stdout.write(json.dumps(steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
