"""Replicas' streams over one prefetcher, and ways to run work on them at the same time.

Test kit. It uses checkpoint and streaming alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

from layerstream.checkpoint.reader import DiskReader
from layerstream.spec.timeline import Activity, Timeline
from layerstream.streaming.buffers import allocate_many
from layerstream.streaming.device_buffers import DeviceBuffers
from layerstream.streaming.prefetcher import Prefetcher
from layerstream.streaming.runtime import DeviceRuntime, TorchRuntime
from layerstream.streaming.stream import WeightStream
from layerstream.testing import FakeAsyncRuntime

from .byte_units import NUM_UNITS, UNIT_BYTES, byte_unit, visit

NUM_BUFFERS = 2
LONG_S = 3600.0


class CopyingRuntime(TorchRuntime):
    """A device in host memory with slots of its own; every copy is done at once."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.name = "fake:0"
        self.is_host = False


class SharedReads:
    """A prefetcher and its replicas' streams; counts the reads."""

    def __init__(self, prefetcher: Prefetcher, streams: Sequence[WeightStream], timeline: Timeline) -> None:
        self.prefetcher, self.streams, self._timeline = prefetcher, streams, timeline

    @property
    def num_reads(self) -> int:
        return self._timeline.totals[Activity.READ].count


@contextmanager
def replicas(
    path: Path, runtimes: Sequence[DeviceRuntime], patience_s: float = LONG_S
) -> Iterator[SharedReads]:
    """Yield one stream per runtime, all over the units of `path`; close them afterwards."""
    timeline = Timeline()
    with DiskReader() as reader:
        prefetcher = Prefetcher(
            [byte_unit(path, index) for index in range(NUM_UNITS)],
            reader,
            lambda: allocate_many([UNIT_BYTES + 8192] * NUM_BUFFERS),
            timeline=timeline,
            patience_s=patience_s,
        )
        streams = []
        for index, runtime in enumerate(runtimes):
            buffers = DeviceBuffers(runtime=runtime)
            if not runtime.is_host:
                buffers.allocate(2, UNIT_BYTES + 8192)
            streams.append(WeightStream(prefetcher, buffers, index=index))
        prefetcher.start(streams)
        try:
            yield SharedReads(prefetcher, streams, timeline)
        finally:
            for stream in streams:
                stream.close()
            prefetcher.close()


KINDS: dict[str, Callable[[int], list[DeviceRuntime]]] = {
    "cpu": lambda count: [TorchRuntime(torch.device("cpu")) for _ in range(count)],
    "fake": lambda count: [FakeAsyncRuntime(lag_s=0.0, name=f"fake:{index}") for index in range(count)],
}
"""Make a number of runtimes: of the CPU, or of a fake asynchronous device."""

both_kinds = pytest.mark.parametrize("kind", list(KINDS))


def sweep(stream: WeightStream, order: Sequence[int] = tuple(range(NUM_UNITS))) -> None:
    """Visit units in one forward."""
    stream.begin_forward()
    try:
        for index in order:
            visit(stream, index)
    finally:
        stream.release_all()
        stream.end_forward()


def in_parallel(*works: Callable[[], object]) -> list[BaseException | None]:
    """Run each of `works` in its own thread; return what each raised. A work that hangs fails the test."""
    raised: list[BaseException | None] = [None] * len(works)

    def run(number: int) -> None:
        try:
            works[number]()
        except BaseException as error:  # noqa: BLE001 - the test checks it
            raised[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a replica hangs"
    return raised


def in_step(shared: SharedReads, *works: Callable[[], object]) -> list[BaseException | None]:
    """Run one work per replica, in step: each replica is expected until its work is over."""
    shared.prefetcher.start_in_step()

    def until_over(work: Callable[[], object], stream: WeightStream) -> None:
        try:
            work()
        finally:
            stream.leave_step()

    pairs = zip(works, shared.streams, strict=True)
    return in_parallel(*[partial(until_over, work, stream) for work, stream in pairs])
