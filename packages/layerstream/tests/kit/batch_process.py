"""A process that works on batches until it is killed: `python -m kit.batch_process FOLDER LOG SEED [finish]`.

It adds small batches while fewer than two are open, so that a kill finds it checking, answering or ending
one. With `finish` it adds none, and ends when all have ended. Each question to the fake server is a line of
the log.

Test kit.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import sys
from pathlib import Path
from typing import Any

from layerstream.server.batches.settings import BatchSettings
from layerstream.server.batches.store import BatchStore
from layerstream.server.batches.worker import BatchWorker

CHAT = "/v1/chat/completions"
LINES = 12
LINES_IN_FLIGHT = 4
SETTINGS = BatchSettings(lines_in_flight=LINES_IN_FLIGHT, retry_s=0.002, most_retry_s=0.01)


def is_refused(name: str) -> bool:
    """Return whether the fake server refuses a line."""
    return name.endswith("-7")


class SlowServer:
    """Takes its time, refuses some lines, and has no room now and then."""

    def __init__(self, log: int, seed: int) -> None:
        self._log = log
        self._random = random.Random(seed)

    async def respond(self, endpoint: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer one line."""
        name = body["messages"][0]["content"]
        if self._random.random() < 0.05:
            return 429, {}
        os.write(self._log, f"{name}\n".encode())
        await asyncio.sleep(self._random.uniform(0, 0.02))
        return 400 if is_refused(name) else 200, {"of": name}


def add_batch(store: BatchStore) -> None:
    """Upload a file and create its batch."""
    prefix = secrets.token_hex(4)
    with store.files.new_file() as new:
        for number in range(LINES):
            name = f"{prefix}-{number}"
            body = {"messages": [{"role": "user", "content": name}]}
            line = {"custom_id": name, "method": "POST", "url": CHAT, "body": body}
            new.write(json.dumps(line).encode() + b"\n")
        stored = store.files.keep_upload(new, "input.jsonl")
    store.batches.create(input_file_id=stored.id, endpoint=CHAT, completion_window="24h")


async def main(folder: Path, log: Path, seed: int, is_last: bool) -> None:
    """Work until killed, or until all is done."""
    store = BatchStore(folder, SETTINGS)
    server = SlowServer(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), seed)
    worker = BatchWorker(store, server.respond)
    worker.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while (num_open := len(await asyncio.to_thread(store.batches.open))) or not is_last:
        if num_open < 2 and not is_last:
            await asyncio.to_thread(add_batch, store)
            worker.notify()
        await asyncio.sleep(0.002)
    await worker.stop()
    store.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), "finish" in sys.argv[4:]))
