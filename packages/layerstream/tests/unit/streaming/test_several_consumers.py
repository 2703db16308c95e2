"""Several replicas share the reads: units are read once, and an idle replica holds up no other."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest
from kit.byte_units import NUM_UNITS, visit
from kit.shared_reads import KINDS, NUM_BUFFERS, both_kinds, in_parallel, in_step, replicas, sweep

from layerstream.streaming.stream import WeightStream


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
                visit(stream, index, pauses[number * NUM_UNITS + index])
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
def test_a_replica_that_joined_is_waited_for_until_it_leaves(file: Path, kind: str) -> None:
    with replicas(file, KINDS[kind](2)) as shared:
        first, second = shared.streams
        has_joined = threading.Event()

        def sweep_on() -> None:
            assert has_joined.wait(60)
            for _ in range(6):
                sweep(first)

        def once_the_other_waits() -> None:
            second.join_step()
            has_joined.set()
            while not first.is_starving:
                time.sleep(0.001)
            for _ in range(3):
                sweep(second)
            second.leave_step()

        assert in_parallel(sweep_on, once_the_other_waits) == [None, None]
        assert shared.num_reads <= 6 * NUM_UNITS + NUM_BUFFERS + 2


def test_what_undoes_a_stop_forgets_no_forward_that_is_under_way(file: Path) -> None:
    with replicas(file, KINDS["cpu"](1)) as shared:
        (stream,) = shared.streams
        stream.begin_forward()
        stream.resume(is_idle=lambda: False)
        assert stream.is_in_forward
        stream.resume(is_idle=lambda: True)
        assert not stream.is_in_forward


def test_what_undoes_a_stop_forgets_no_forward_that_begins_meanwhile(file: Path) -> None:
    with replicas(file, KINDS["cpu"](1)) as shared:
        (stream,) = shared.streams
        begins = threading.Thread(target=stream.begin_forward)

        def is_idle() -> bool:
            begins.start()
            # so it begins after what this answer leads to
            assert shared.prefetcher.lock.locked()
            return True

        stream.resume(is_idle=is_idle)
        begins.join()
        assert stream.is_in_forward


def test_a_forward_whose_end_ctrl_c_prevented_does_not_outlive_the_next_one(file: Path) -> None:
    with replicas(file, KINDS["cpu"](1)) as shared:
        (stream,) = shared.streams
        stream.begin_forward()
        sweep(stream)
        assert not stream.is_in_forward


def test_a_replica_is_expected_until_every_thread_that_joined_has_left(file: Path) -> None:
    with replicas(file, KINDS["cpu"](2)) as shared:
        first, second = shared.streams
        first.join_step()

        def run_in_step() -> None:
            shared.prefetcher.start_in_step()
            for stream in (first, second):
                stream.join_step()
                stream.leave_step()

        assert in_parallel(run_in_step) == [None]
        assert (first.is_expected, second.is_expected) == (True, False)
        first.leave_step()
        assert not first.is_expected


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


@both_kinds
def test_slots_of_all_replicas_can_be_freed_and_restored_between_sweeps(file: Path, kind: str) -> None:
    with replicas(file, KINDS[kind](3)) as shared:
        for _ in range(5):
            works = [lambda stream=stream: sweep(stream) for stream in shared.streams]
            assert in_step(shared, *works) == [None] * 3
            for stream in shared.streams:
                stream.free_slots()
            for stream in shared.streams:
                stream.restore_slots()
