"""Two worst-case asynchronous devices share the reads: both are exact; without any one wait, one is not."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import layerstream as ls
from layerstream.spec.plans import LedgerKind
from layerstream.streaming.fetches import Fetch
from layerstream.streaming.prefetcher import Prefetcher
from layerstream.testing import FakeAsyncRuntime, FakeEvent, FakeStream

IDS = (torch.arange(1, 13).reshape(2, 6), torch.arange(40, 55).reshape(3, 5))
SWEEPS = 3


class ComputeDoesNotWaitForCopies(FakeAsyncRuntime):
    """A computation may start before its weights are copied."""

    def stream_wait(self, stream: FakeStream, event: FakeEvent) -> None:
        """Leave out the computation's wait."""
        if stream is not self.compute_stream():
            super().stream_wait(stream, event)


class CopiesDoNotWaitForCompute(FakeAsyncRuntime):
    """A copy may overwrite weights that a kernel is still reading."""

    def stream_wait(self, stream: FakeStream, event: FakeEvent) -> None:
        """Leave out the copy stream's wait."""
        if stream is self.compute_stream():
            super().stream_wait(stream, event)


class ReadsDoNotWaitForCopies(FakeAsyncRuntime):
    """A read may overwrite a staging buffer that is still being copied from."""

    def host_wait(self, event: FakeEvent) -> None:
        """Leave out the host's wait."""


class ComputesSlowly(FakeAsyncRuntime):
    """Its copies are quick, but it falls behind with its computation."""

    def stream_wait(self, stream: FakeStream, event: FakeEvent) -> None:
        """Take a while before each computation."""
        if stream is self.compute_stream():
            time.sleep(0.03)
        super().stream_wait(stream, event)


@pytest.fixture(scope="module")
def reference(tiny_llama_dir: Path) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    with torch.no_grad():
        return [model(ids).logits for ids in IDS]


def forwards(replica: ls.Replica) -> list[torch.Tensor]:
    return [replica.model(IDS[replica.index]).logits for _ in range(SWEEPS)]


def is_exact(results: list[list[torch.Tensor]], reference: list[torch.Tensor], index: int) -> bool:
    return all(torch.equal(logits, reference[index]) for logits in results[index])


def load(
    path: Path, *runtimes: FakeAsyncRuntime, host: str | int = "min", device: str | int = "min"
) -> ls.StreamedModel:
    return ls.load(path, budget=ls.MemoryBudget(device=device, host=host), runtime=runtimes)


@pytest.mark.parametrize("host", ["min", "1 GiB"], ids=["from disk", "from host memory"])
def test_two_worst_case_devices_give_the_exact_results(
    tiny_llama_dir: Path, reference: list[torch.Tensor], host: str
) -> None:
    runtimes = FakeAsyncRuntime(), FakeAsyncRuntime(name="fake:1", lag_s=0.005)
    with load(tiny_llama_dir, *runtimes, host=host) as streamed:
        assert not streamed.plan.is_resident
        assert streamed.plan.devices == ("fake:0", "fake:1")
        results = streamed.run_on_devices(forwards)
        report = streamed.report()
    assert is_exact(results, reference, 0)
    assert is_exact(results, reference, 1)
    assert all(runtime.num_copies > SWEEPS * 4 for runtime in runtimes)
    swept_bytes = SWEEPS * sum(unit.read_bytes for unit in streamed.plan.units)
    assert report.bytes_copied >= 2 * swept_bytes * 0.99
    if host == "1 GiB":
        assert report.bytes_read == 0


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    "broken", [ComputeDoesNotWaitForCopies, CopiesDoNotWaitForCompute, ReadsDoNotWaitForCopies]
)
def test_removing_any_wait_of_one_replica_breaks_a_result(
    tiny_llama_dir: Path, reference: list[torch.Tensor], broken: type[FakeAsyncRuntime], index: int
) -> None:
    runtimes = [FakeAsyncRuntime(lag_s=0.0, name="fake:0"), FakeAsyncRuntime(lag_s=0.0, name="fake:1")]
    runtimes[index] = broken(lag_s=0.01, name=f"fake:{index}")
    with load(tiny_llama_dir, *runtimes) as streamed:
        results = streamed.run_on_devices(forwards)
    assert not is_exact(results, reference, index)
    assert is_exact(results, reference, 1 - index)


def test_a_staging_buffer_that_does_not_wait_for_every_replica_breaks_a_result(
    tiny_llama_dir: Path, reference: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, released = Prefetcher.release, []

    def free_at_the_first_release(self: Prefetcher, fetch: Fetch) -> None:
        if fetch in released:
            return
        released.append(fetch)
        fetch.num_leases, buffer = 1, fetch.buffer
        plain(self, fetch)
        fetch.buffer = buffer

    monkeypatch.setattr(Prefetcher, "release", free_at_the_first_release)
    with load(
        tiny_llama_dir, FakeAsyncRuntime(lag_s=0.0), ComputesSlowly(lag_s=0.0, name="fake:1")
    ) as streamed:
        results = streamed.run_on_devices(forwards)
    assert not is_exact(results, reference, 1)


def test_replicas_of_a_mixed_plan_are_exact(tiny_llama_dir: Path, reference: list[torch.Tensor]) -> None:
    sizes = []
    for device in ("min", "4 GiB"):
        with load(
            tiny_llama_dir,
            FakeAsyncRuntime(lag_s=0.0),
            FakeAsyncRuntime(lag_s=0.0, name="fake:1"),
            device=device,
        ) as streamed:
            sizes.append(streamed.plan.ledger.device_bytes)
    runtimes = FakeAsyncRuntime(), FakeAsyncRuntime(name="fake:1")
    with load(tiny_llama_dir, *runtimes, device=sum(sizes) // 2) as streamed:
        assert 0 < streamed.plan.count(ls.Residency.DEVICE) < len(streamed.plan.units)
        results = streamed.run_on_devices(forwards)
    assert is_exact(results, reference, 0)
    assert is_exact(results, reference, 1)


def test_a_device_named_twice_has_two_replicas_each_with_its_own_slots(
    tiny_llama_dir: Path, reference: list[torch.Tensor]
) -> None:
    with load(tiny_llama_dir, FakeAsyncRuntime(), FakeAsyncRuntime()) as streamed:
        sizes = {line.kind: line.num_bytes for line in streamed.plan.ledger.lines}
        assert sizes[LedgerKind.SLOTS] == 2 * streamed.plan.num_slots * streamed.plan.slot_bytes
        results = streamed.run_on_devices(forwards)
    assert is_exact(results, reference, 0)
    assert is_exact(results, reference, 1)


def test_an_asynchronous_replica_that_fails_stops_the_other(
    tiny_llama_dir: Path, reference: list[torch.Tensor]
) -> None:
    threads = set(threading.enumerate())
    with load(tiny_llama_dir, FakeAsyncRuntime(), FakeAsyncRuntime(name="fake:1")) as streamed:

        def fail_at_once(replica: ls.Replica) -> None:
            if replica.index == 1:
                raise ValueError("this device fails")
            for _ in range(1000):
                replica.model(IDS[replica.index])

        with pytest.raises(ValueError, match="this device fails"):
            streamed.run_on_devices(fail_at_once)
        results = streamed.run_on_devices(forwards)
    assert is_exact(results, reference, 0)
    assert is_exact(results, reference, 1)
    assert set(threading.enumerate()) <= threads
