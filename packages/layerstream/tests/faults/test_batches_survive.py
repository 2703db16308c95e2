"""Batches survive kill -9 at any instant: no line is lost or has two results, and no file is half there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from kit.batch_process import LINES, LINES_IN_FLIGHT, is_refused
from kit.batch_stores import folder_in_memory

from layerstream.server.batches.store import BatchStore
from layerstream.server.batches.values import StoredBatch

KILLS = 25
TESTS = Path(__file__).parents[1]


def start(module: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process of the kit."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", f"kit.{module}", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_after(process: subprocess.Popen[str], delay_s: float, *, is_ready: bool) -> None:
    """Kill a process some time after its start, or after it has begun to work."""
    with process:
        assert process.stdout is not None and process.stderr is not None
        if is_ready:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay_s)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def check_batch(store: BatchStore, batch: StoredBatch) -> list[str]:
    """Check the files of a batch that has ended; return the names of its lines."""
    lines = store.files.path(batch.input_file_id).read_bytes().splitlines()
    names = [json.loads(line)["custom_id"] for line in lines]
    assert len(names) == LINES
    assert (batch.status, batch.total) == ("completed", LINES)
    for file_id, expected in (
        (batch.output_file_id, [name for name in names if not is_refused(name)]),
        (batch.error_file_id, [name for name in names if is_refused(name)]),
    ):
        assert file_id is not None
        results = [json.loads(line) for line in store.files.path(file_id).read_bytes().splitlines()]
        assert [result["custom_id"] for result in results] == expected
        assert [result["response"]["body"]["of"] for result in results] == expected
    return names


def test_batches_that_are_killed_again_and_again_end_with_one_result_for_every_line(tmp_path: Path) -> None:
    chance = random.Random(20261127)
    folder, log = tmp_path / "batches", tmp_path / "asked"
    for kill in range(KILLS):
        # every fifth one dies while it starts, the others at work
        is_ready = kill % 5 != 4
        delay_s = chance.uniform(0, 0.4)
        kill_after(start("batch_process", folder, log, kill), delay_s, is_ready=is_ready)
    with start("batch_process", folder, log, KILLS, "finish") as last:
        _, errors = last.communicate()
        assert last.returncode == 0, errors
    store = BatchStore(folder)
    try:
        batches, has_more = store.batches.page(limit=100_000)
        assert not has_more
        names = [name for batch in batches for name in check_batch(store, batch)]
        on_disk = {path.name for path in (folder / "files").iterdir()}
        assert on_disk == {each.id for each in store.files.page(limit=100_000)[0]}
    finally:
        store.close()
    asked = Counter(log.read_text().split())
    assert set(asked) == set(names)
    # what was in flight at a kill is asked again, and nothing else
    assert 0 < sum(asked.values()) - len(asked) <= KILLS * LINES_IN_FLIGHT


@pytest.mark.timeout(300)
def test_a_kill_at_any_line_of_the_store_breaks_no_promise() -> None:
    # memory keeps what a kill leaves as well as a disk does
    with folder_in_memory() as folder, start("batch_deaths", folder) as deaths:
        output, errors = deaths.communicate()
        assert deaths.returncode == 0, errors
    kills = json.loads(output)
    assert list(kills) == ["nothing", "uploaded", "created", "checked", "answered", "ended", "deleted"]
    assert kills["answered"] > 50  # between the last answer and the end: the files are written
