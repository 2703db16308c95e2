"""Resident copies for a verification take the memory of the slots, which are free meanwhile."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from kit.storages import Alive, Watch
from kit.wide_llama import save_wide_llama, stream_in
from torch import nn

import layerstream as ls
from layerstream.testing import FakeAsyncRuntime

WORKLOAD = ls.Workload(prompt_tokens=4, new_tokens=1)


class CountingRuntime(FakeAsyncRuntime):
    """A fake device that counts what is allocated on it and alive."""

    def __init__(self, name: str = "fake:0", alive: Alive | None = None) -> None:
        super().__init__(lag_s=0.0, name=name)
        self.alive, self.num_allocations = alive or Alive(), 0

    def allocate(self, num_bytes: int) -> torch.Tensor:
        memory = super().allocate(num_bytes)
        self.num_allocations += 1
        self.alive.add(memory.untyped_storage())
        return memory


class AliveInMemory(Alive):
    """Counts no storage that is a part of a mapped file: its pages can be dropped at any time."""

    def add(self, storage: torch.UntypedStorage) -> None:
        address = storage.data_ptr()
        for line in Path("/proc/self/maps").read_text().splitlines():
            start, end = (int(number, 16) for number in line.split(maxsplit=1)[0].split("-"))
            if start <= address < end and line.endswith(".safetensors"):
                return
        super().add(storage)


on_linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="tells mapped files by /proc")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_wide_llama(tmp_path_factory.mktemp("wide"))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_device_never_holds_more_than_its_slots_and_residents(
    path: Path, dtype: str, num_replicas: int
) -> None:
    """Two replicas on one device share what is free there."""
    first = CountingRuntime()
    runtimes = [first, *(CountingRuntime(alive=first.alive) for _ in range(num_replicas - 1))]
    with ls.load(path, dtype=dtype, budget="min", workload=WORKLOAD, runtime=runtimes) as streamed:
        plan, alive = streamed.plan, first.alive
        before_bytes = alive.now_bytes
        assert before_bytes >= num_replicas * plan.num_slots * plan.slot_bytes
        num_allocations = first.num_allocations
        report = streamed.verify()
        assert report.is_equal
        gc.collect()
        assert alive.now_bytes == before_bytes
        assert alive.peak_bytes == before_bytes
    # the copies were counted: at least one weight of each unit, and the slots again
    num_checked = len(report.units) // num_replicas
    assert first.num_allocations - num_allocations >= num_checked + plan.num_slots


@on_linux
@pytest.mark.parametrize(
    "granularity", [ls.Granularity.BLOCK, ls.Granularity.LAYER], ids=lambda granularity: granularity.value
)
def test_on_the_cpu_the_slots_are_gone_while_a_copy_runs_and_operations_allocate_little(
    path: Path, granularity: ls.Granularity
) -> None:
    """Weights that are used as they are stored are mapped, and take no memory of their own."""
    memory: list[weakref.ref[object]] = []
    held: list[int] = []

    def watch(module: nn.Module, *_: object) -> None:
        if isinstance(module.weight, nn.Parameter) and type(module.weight) is nn.Parameter:
            held.append(sum(reference() is not None for reference in memory))

    with stream_in(path, granularity, WORKLOAD) as streamed:
        name = next(name for name, module in streamed.model.named_modules() if isinstance(module, nn.Linear))
        streamed.model.get_submodule(name).register_forward_hook(watch)
        streamed.verify()
        held.clear()
        assert streamed._prefetcher is not None
        pool = streamed._prefetcher._buffers
        memory += [weakref.ref(buffer.host.view.obj) for buffer in pool]
        alive = AliveInMemory()
        with Watch(alive):
            assert streamed.verify().is_equal
        plan = streamed.plan
    assert held == [0]
    assert memory
    # activations, but no copy of a unit's weights
    assert alive.peak_bytes < 0.5 * plan.slot_bytes


@on_linux
def test_on_the_cpu_a_cast_copy_takes_at_most_what_the_slots_took(path: Path) -> None:
    with ls.load(path, dtype="float16", budget="min", workload=WORKLOAD) as streamed:
        alive = AliveInMemory()
        with Watch(alive):
            assert streamed.verify().is_equal
        plan = streamed.plan
    largest = max(unit.weight_bytes for unit in plan.units)
    assert largest <= alive.peak_bytes <= plan.num_slots * plan.slot_bytes
