"""Several replicas share the reads: units are read once, an idle replica holds up no other, nothing hangs."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from layerstream.checkpoint.reader import DiskReader
from layerstream.errors import ReadFailedError, ReplicaStoppedError, StreamClosedError, StreamError
from layerstream.spec.profiles import Piece, StoredTensor, TensorRecipe, UnitRecipe
from layerstream.spec.timeline import Activity, Timeline
from layerstream.streaming.device_buffers import DeviceBuffers
from layerstream.streaming.fetches import StreamedUnit
from layerstream.streaming.prefetcher import Prefetcher
from layerstream.streaming.runtime import DeviceRuntime, TorchRuntime
from layerstream.streaming.sources import UnitSource
from layerstream.streaming.stream import WeightStream
from layerstream.testing import FakeAsyncRuntime

NUM_UNITS = 5
UNIT_BYTES = 40_000
NUM_BUFFERS = 2
LONG_S = 3600.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"".join(bytes([index + 1]) * UNIT_BYTES for index in range(NUM_UNITS)))
    return path


def unit(path: Path, index: int) -> StreamedUnit:
    source = StoredTensor(
        name=f"t{index}",
        dtype="uint8",
        shape=(UNIT_BYTES,),
        path=str(path),
        offset=index * UNIT_BYTES,
        num_bytes=UNIT_BYTES,
    )
    tensor = TensorRecipe(
        name=f"t{index}",
        dtype="uint8",
        shape=(UNIT_BYTES,),
        num_bytes=UNIT_BYTES,
        pieces=(Piece(source=source),),
    )
    return StreamedUnit(
        name=f"unit{index}",
        position=index,
        source=UnitSource(UnitRecipe(name=f"unit{index}", tensors=(tensor,))),
    )


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
    timeline = Timeline()
    with DiskReader() as reader:
        prefetcher = Prefetcher(
            [unit(path, index) for index in range(NUM_UNITS)],
            reader,
            num_buffers=NUM_BUFFERS,
            buffer_bytes=UNIT_BYTES + 8192,
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
both_kinds = pytest.mark.parametrize("kind", list(KINDS))


def visit(stream: WeightStream, index: int) -> None:
    lease = stream.acquire(index)
    (tensor,) = stream.views(lease).values()
    assert bool((tensor == index + 1).all())
    stream.release(lease)


def sweep(stream: WeightStream, order: Sequence[int] = tuple(range(NUM_UNITS))) -> None:
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
    return in_parallel(*[lambda work=work, stream=stream: until_over(work, stream) for work, stream in pairs])


@both_kinds
@pytest.mark.parametrize("count", [2, 3])
def test_replicas_in_step_read_each_unit_once(file: Path, kind: str, count: int) -> None:
    sweeps = 6
    with replicas(file, KINDS[kind](count)) as shared:
        works = [lambda stream=stream: [sweep(stream) for _ in range(sweeps)] for stream in shared.streams]
        assert in_step(shared, *works) == [None] * count
        # prefetches for a seventh sweep are bounded by the buffers
        assert sweeps * NUM_UNITS <= shared.num_reads <= sweeps * NUM_UNITS + NUM_BUFFERS + 2


@both_kinds
def test_replicas_that_pause_at_different_units_keep_in_step(file: Path, kind: str) -> None:
    rng = random.Random(5)
    delays = [[rng.choice([0, 0, 0, 0.004]) for _ in range(10 * NUM_UNITS)] for _ in range(2)]

    def sweep_with_pauses(stream: WeightStream, pauses: list[float]) -> None:
        for number in range(10):
            stream.begin_forward()
            for index in range(NUM_UNITS):
                lease = stream.acquire(index)
                time.sleep(pauses[number * NUM_UNITS + index])
                (tensor,) = stream.views(lease).values()
                assert bool((tensor == index + 1).all())
                stream.release(lease)
            stream.end_forward()
            time.sleep(pauses[number])

    with replicas(file, KINDS[kind](2)) as shared:
        works = [
            lambda s=s, d=d: sweep_with_pauses(s, d) for s, d in zip(shared.streams, delays, strict=True)
        ]
        assert in_step(shared, *works) == [None, None]
        assert shared.num_reads <= 10 * NUM_UNITS + NUM_BUFFERS + 2


@both_kinds
def test_an_idle_replica_does_not_hold_up_another(file: Path, kind: str) -> None:
    with replicas(file, KINDS[kind](2)) as shared:
        first, second = shared.streams
        assert in_parallel(lambda: [sweep(first) for _ in range(3)]) == [None]
        assert shared.num_reads <= 3 * NUM_UNITS + NUM_BUFFERS + 2
        # and the other way round, in one thread, repeatedly
        for _ in range(3):
            assert in_parallel(lambda: (sweep(second), sweep(first))) == [None]


@both_kinds
def test_a_replica_with_fewer_sweeps_does_not_hold_up_the_other(file: Path, kind: str) -> None:
    with replicas(file, KINDS[kind](2)) as shared:
        first, second = shared.streams
        assert in_step(shared, lambda: [sweep(first) for _ in range(9)], lambda: sweep(second)) == [
            None,
            None,
        ]
        assert shared.num_reads <= 9 * NUM_UNITS + NUM_BUFFERS + 2


@both_kinds
def test_patience_with_an_expected_replica_ends(file: Path, kind: str) -> None:
    with replicas(file, KINDS[kind](2), patience_s=0.05) as shared:
        first, second = shared.streams
        done = threading.Event()

        def wait_for_the_other() -> None:
            sweep(second)
            assert done.wait(60)
            sweep(second)

        def sweep_on() -> None:
            for _ in range(4):
                sweep(first)
            done.set()

        assert in_step(shared, sweep_on, wait_for_the_other) == [None, None]


@both_kinds
def test_replicas_in_any_order_are_served(file: Path, kind: str) -> None:
    def wander(stream: WeightStream, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(12):
            order = [rng.randrange(NUM_UNITS) for _ in range(rng.randrange(1, 7))]
            sweep(stream, order)

    with replicas(file, KINDS[kind](3), patience_s=0.01) as shared:
        works = [
            lambda stream=stream, seed=seed: wander(stream, seed)
            for seed, stream in enumerate(shared.streams)
        ]
        assert in_step(shared, *works) == [None, None, None]
        assert in_parallel(*works) == [None, None, None]


@both_kinds
def test_a_unit_that_the_other_replica_never_visits_is_served_too(file: Path, kind: str) -> None:
    with replicas(file, KINDS[kind](2)) as shared:
        first, second = shared.streams
        done = threading.Event()

        def repeat_the_last_two() -> None:
            first.begin_forward()
            while not done.is_set():
                visit(first, 3)
                visit(first, 4)
            first.end_forward()

        def ask_for_the_first() -> None:
            time.sleep(0.02)
            try:
                sweep(second, [0, 1])
            finally:
                done.set()

        works = (
            threading.Thread(target=repeat_the_last_two, daemon=True),
            threading.Thread(target=ask_for_the_first, daemon=True),
        )
        for thread in works:
            thread.start()
        served = done.wait(20)
        done.set()
        assert served, "it waits for a unit that is never read"
        for thread in works:
            thread.join(20)


@both_kinds
def test_a_replica_whose_forward_breaks_off_rejoins(file: Path, kind: str) -> None:
    def break_off(stream: WeightStream) -> None:
        for number in range(6):
            sweep(stream, range(NUM_UNITS) if number % 2 else range(2))

    with replicas(file, KINDS[kind](2)) as shared:
        first, second = shared.streams
        assert in_step(shared, lambda: [sweep(first) for _ in range(6)], lambda: break_off(second)) == [
            None,
            None,
        ]
        sweep(first)
        sweep(second)


@both_kinds
def test_a_failing_read_is_reported_to_every_replica_and_both_recover(file: Path, kind: str) -> None:
    whole = file.read_bytes()
    with replicas(file, KINDS[kind](2)) as shared:
        first, second = shared.streams
        assert in_step(shared, lambda: sweep(first), lambda: sweep(second)) == [None, None]
        os.truncate(file, 2 * UNIT_BYTES)
        raised = in_step(
            shared, lambda: [sweep(first) for _ in range(2)], lambda: [sweep(second) for _ in range(2)]
        )
        assert [type(error) for error in raised] == [ReadFailedError, ReadFailedError]
        file.write_bytes(whole)
        assert in_step(shared, lambda: sweep(first), lambda: sweep(second)) == [None, None]


@both_kinds
def test_a_stopped_replica_gets_the_reason_while_it_waits(file: Path, kind: str) -> None:
    with replicas(file, KINDS[kind](2)) as shared:
        first, second = shared.streams

        def stop_soon() -> None:
            second.begin_forward()  # the other one waits for it, and it asks for nothing
            time.sleep(0.05)
            first.stop(ValueError("the other one"))
            second.end_forward()

        raised = in_step(shared, lambda: [sweep(first) for _ in range(3)], stop_soon)
        assert isinstance(raised[0], ReplicaStoppedError)
        assert "the other one" in str(raised[0])
        first.resume()
        sweep(first)


@both_kinds
def test_close_wakes_every_waiting_replica(file: Path, kind: str) -> None:
    with replicas(file, KINDS[kind](2)) as shared:
        first, second = shared.streams

        def close_soon() -> None:
            second.begin_forward()
            time.sleep(0.05)
            second.close()
            first.close()

        raised = in_step(shared, lambda: [sweep(first) for _ in range(3)], close_soon)
        assert isinstance(raised[0], StreamClosedError)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("layerstream")]


def test_replicas_that_hold_every_buffer_and_ask_for_more_are_refused(file: Path) -> None:
    with replicas(file, KINDS["cpu"](2)) as shared:
        first, second = shared.streams
        held = [first.acquire(0), second.acquire(0)]
        second.release(held.pop())
        held.append(second.acquire(1))

        def ask_for_one_more(stream: WeightStream, index: int) -> None:
            try:
                visit(stream, index)
            finally:
                stream.release_all()  # as the end of a forward does

        raised = in_parallel(lambda: ask_for_one_more(first, 3), lambda: ask_for_one_more(second, 4))
        assert [
            error for error in raised if isinstance(error, StreamError) and "slots are in use" in str(error)
        ]


def test_many_runs_in_step_lose_no_buffer(file: Path) -> None:
    with replicas(file, KINDS["cpu"](2), patience_s=0.01) as shared:
        rng = random.Random(3)
        for _ in range(100):
            counts = [rng.randrange(3) for _ in shared.streams]
            works = [
                lambda s=s, n=n: [sweep(s) for _ in range(n)]
                for s, n in zip(shared.streams, counts, strict=True)
            ]
            assert in_step(shared, *works) == [None, None]
        # every buffer is still there: two leases at once are served
        leases = [shared.streams[0].acquire(0), shared.streams[0].acquire(1)]
        assert len({lease.key[1] for lease in leases}) == NUM_BUFFERS
        for lease in leases:
            shared.streams[0].release(lease)


class BrokenOffError(Exception):
    """A forward failed halfway."""


def random_work(stream: WeightStream, seed: int) -> None:
    """Sweep, visit units in random order, pause, stop halfway and sometimes raise, at random."""
    rng = random.Random(seed)
    for _ in range(rng.randrange(6)):
        choice = rng.random()
        if choice < 0.5:
            sweep(stream)
        elif choice < 0.65:
            sweep(stream, range(rng.randrange(NUM_UNITS)))
        elif choice < 0.8:
            sweep(stream, [rng.randrange(NUM_UNITS) for _ in range(3)])
        elif choice < 0.9:
            time.sleep(rng.random() * 0.01)
        else:
            raise BrokenOffError


@both_kinds
def test_random_works_and_faults_never_hang_or_mix_up_weights(file: Path, kind: str) -> None:
    with replicas(file, KINDS[kind](3), patience_s=0.005) as shared:
        for number in range(60):
            seeded = zip(shared.streams, range(3 * number, 3 * number + 3), strict=True)
            works = [lambda stream=stream, seed=seed: random_work(stream, seed) for stream, seed in seeded]
            raised = in_step(shared, *works) if number % 2 else in_parallel(*works)
            assert {type(error) for error in raised} <= {type(None), BrokenOffError}
        for stream in shared.streams:
            sweep(stream)
