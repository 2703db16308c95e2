"""`load(on_progress=…)`: how much of what stays in memory has been read."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

import layerstream as ls
from layerstream.testing import FakeAsyncRuntime

WORKLOAD = ls.Workload(prompt_tokens=6, new_tokens=2)


def load(path: Path, budget: str | ls.MemoryBudget, *, on_accelerator: bool) -> list[ls.LoadProgress]:
    seen: list[ls.LoadProgress] = []
    runtime = FakeAsyncRuntime(lag_s=0.0) if on_accelerator else None
    device = "auto" if on_accelerator else "cpu"
    ls.load(
        path, budget=budget, device=device, runtime=runtime, workload=WORKLOAD, on_progress=seen.append
    ).close()
    return seen


@pytest.mark.parametrize("on_accelerator", [False, True])
@pytest.mark.parametrize("budget", ["1 GiB", ls.MemoryBudget(device="min", host="1 GiB")])
def test_progress_rises_to_the_total(
    tiny_llama_dir: Path, budget: str | ls.MemoryBudget, on_accelerator: bool
) -> None:
    seen = load(tiny_llama_dir, budget, on_accelerator=on_accelerator)
    assert all(before.done_bytes < after.done_bytes for before, after in pairwise(seen))
    assert seen[-1].done_bytes == seen[-1].total_bytes
    assert {progress.total_bytes for progress in seen} == {seen[-1].total_bytes}


def test_what_is_streamed_from_disk_is_not_part_of_it(tiny_llama_dir: Path) -> None:
    everything = load(tiny_llama_dir, "1 GiB", on_accelerator=True)[-1].total_bytes
    in_host = load(tiny_llama_dir, ls.MemoryBudget(device="min", host="1 GiB"), on_accelerator=True)
    on_disk = load(tiny_llama_dir, ls.MemoryBudget(device="min", host="min"), on_accelerator=True)
    assert on_disk[-1].total_bytes < in_host[-1].total_bytes == everything


def test_progress_says_how_far_it_is() -> None:
    assert ls.LoadProgress(done_bytes=2**30, total_bytes=2**32).explain() == "1 GiB of 4 GiB"
