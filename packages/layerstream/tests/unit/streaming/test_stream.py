"""One stream without a model: units in any order, errors reported once, nothing left behind."""

from __future__ import annotations

import gc
import os
import random
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from kit.byte_units import NUM_UNITS, UNIT_BYTES, byte_unit, visit

from layerstream.checkpoint.reader import DiskReader
from layerstream.errors import ReadFailedError, StreamClosedError, StreamError
from layerstream.spec.timeline import Activity, Timeline
from layerstream.streaming.buffers import allocate_many
from layerstream.streaming.device_buffers import DeviceBuffers
from layerstream.streaming.prefetcher import Prefetcher
from layerstream.streaming.runtime import TorchRuntime
from layerstream.streaming.stream import WeightStream


@pytest.fixture
def timeline() -> Timeline:
    return Timeline()


@pytest.fixture
def stream(file: Path, timeline: Timeline) -> Iterator[WeightStream]:
    with DiskReader() as reader:
        prefetcher = Prefetcher(
            [byte_unit(file, index) for index in range(NUM_UNITS)],
            reader,
            lambda: allocate_many([UNIT_BYTES + 8192] * 2),
            timeline=timeline,
        )
        stream = WeightStream(prefetcher, DeviceBuffers(runtime=TorchRuntime(torch.device("cpu"))))
        prefetcher.start([stream])
        yield stream
        stream.close()
        prefetcher.close()


def test_sweeps_in_order_are_served(stream: WeightStream, timeline: Timeline) -> None:
    for _ in range(3):
        for index in range(NUM_UNITS):
            visit(stream, index)
    waits = [span for span in timeline.spans() if span.activity is Activity.WAIT]
    assert [span.unit_index for span in waits] == [*range(NUM_UNITS)] * 3
    assert {span.sweep for span in waits} == {0, 1, 2}


def test_any_order_is_served(stream: WeightStream) -> None:
    rng = random.Random(1)
    for _ in range(60):
        visit(stream, rng.randrange(NUM_UNITS))


def test_an_unexpected_order_is_learned(stream: WeightStream, timeline: Timeline) -> None:
    order = [3, 1, 4, 0, 2]
    for _ in range(3):
        for index in order:
            visit(stream, index)
    reads_before = timeline.totals[Activity.READ].count
    for _ in range(4):
        for index in order:
            visit(stream, index)
    # Once the order is learned, every fetch is used; two more may be under way for the next sweep.
    assert timeline.totals[Activity.READ].count - reads_before <= 4 * NUM_UNITS + 2


def test_more_leases_than_slots_are_refused_instead_of_hanging(stream: WeightStream) -> None:
    leases = [stream.acquire(0), stream.acquire(1)]
    with pytest.raises(StreamError, match="all 2 slots are in use"):
        stream.acquire(4)
    for lease in leases:
        stream.release(lease)
    visit(stream, 4)


def test_a_failing_read_raises_and_the_next_visit_tries_again(stream: WeightStream, file: Path) -> None:
    visit(stream, 0)
    whole = file.read_bytes()
    os.truncate(file, UNIT_BYTES)
    for _ in range(5):  # more failures than there are buffers
        with pytest.raises(ReadFailedError):
            for index in (1, 2, 3, 4):
                visit(stream, index)
    file.write_bytes(whole)
    for index in range(NUM_UNITS):
        visit(stream, index)


def test_close_wakes_a_waiting_acquire(file: Path, timeline: Timeline) -> None:
    fifo = file.with_name("never")
    os.mkfifo(fifo)
    with DiskReader(opener=lambda path: os.open(path, os.O_RDWR)) as reader:
        prefetcher = Prefetcher(
            [byte_unit(fifo, 0), byte_unit(fifo, 1)],
            reader,
            lambda: allocate_many([UNIT_BYTES + 8192] * 2),
            timeline=timeline,
        )
        stream = WeightStream(prefetcher, DeviceBuffers(runtime=TorchRuntime(torch.device("cpu"))))
        prefetcher.start([stream])
        caught: list[BaseException] = []

        def wait() -> None:
            try:
                stream.acquire(0)
            except (StreamClosedError, ReadFailedError) as error:
                caught.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        stream.close()
        prefetcher.close()
        waiting.join(10)
    assert not waiting.is_alive()
    assert len(caught) == 1


def test_a_thousand_sweeps_leak_nothing(stream: WeightStream) -> None:
    process = psutil.Process()

    def sweeps(count: int) -> None:
        for _ in range(count):
            for index in range(NUM_UNITS):
                stream.release(stream.acquire(index))

    sweeps(200)
    before, threads, files = process.memory_info().rss, process.num_threads(), process.num_fds()
    sweeps(1000)
    # The timeline's ring of 20,000 spans fills up meanwhile; one leaked buffer per sweep would be 80 MB.
    assert process.memory_info().rss - before < 16 * 1024**2
    assert (process.num_threads(), process.num_fds()) == (threads, files)


def buffers_of(stream: WeightStream) -> list[weakref.ref[object]]:
    """Return references to the memory of the host buffers, which is gone once they are dead."""
    pool = stream._prefetcher._buffers
    return [weakref.ref(buffer.host.view.obj) for buffer in pool]


def test_freed_slots_give_their_memory_back_and_restored_ones_are_used_again(stream: WeightStream) -> None:
    visit(stream, 0)
    stream.free_slots()
    stream.restore_slots()
    memory = buffers_of(stream)
    assert len(memory) == 2
    for index in (1, 2, 4, 0):
        visit(stream, index)
    stream.free_slots()
    gc.collect()
    assert [reference() for reference in memory] == [None, None]
    stream.free_slots()
    stream.restore_slots()
    stream.restore_slots()
    assert all(reference() is not None for reference in buffers_of(stream))
    for index in (3, 4, 0, 1):
        visit(stream, index)


def test_slots_may_be_freed_while_reads_are_under_way(stream: WeightStream) -> None:
    for _ in range(20):
        visit(stream, 0)
        stream.free_slots()
        stream.restore_slots()
    visit(stream, 3)


def test_a_closed_stream_allocates_nothing_more(stream: WeightStream) -> None:
    visit(stream, 0)
    stream.free_slots()
    stream.close()
    stream._prefetcher.close()
    stream.restore_slots()
    assert not stream._prefetcher._buffers
