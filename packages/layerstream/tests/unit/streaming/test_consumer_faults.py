"""Replicas that share reads fail, stop and break off: each is told why, and nothing hangs."""

from __future__ import annotations

import _thread
import os
import random
import threading
import time
from pathlib import Path

import pytest
import torch
from kit.byte_units import NUM_UNITS, UNIT_BYTES, visit
from kit.shared_reads import KINDS, CopyingRuntime, both_kinds, in_parallel, in_step, replicas, sweep

from layerstream.errors import ReadFailedError, ReplicaStoppedError, StreamClosedError, StreamError
from layerstream.streaming.runtime import TorchRuntime
from layerstream.streaming.stream import WeightStream


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
        first.resume(is_idle=lambda: True)
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["cpu", "copying"])
def test_ctrl_c_at_any_moment_loses_nothing(file: Path, kind: str) -> None:
    rng = random.Random(7)
    # the fake asynchronous device keeps its own state in Python, which Ctrl-C would break
    runtime = CopyingRuntime() if kind == "copying" else TorchRuntime(torch.device("cpu"))
    with replicas(file, [runtime]) as shared:
        (stream,) = shared.streams
        num_interrupts = 0
        for _ in range(150):
            delay_s = rng.random() * 0.01
            interrupt = threading.Thread(target=lambda s=delay_s: (time.sleep(s), _thread.interrupt_main()))
            try:
                interrupt.start()
                while interrupt.is_alive():
                    sweep(stream)
                interrupt.join()
                time.sleep(0.001)
            except KeyboardInterrupt:
                num_interrupts += 1
            interrupt.join()
            stream.release_all()
            stream.resume(is_idle=lambda: True)
        assert num_interrupts > 140  # Python drops one that comes inside a weak reference's callback
        for _ in range(3):
            sweep(stream)
        # every buffer and slot is still there: two leases at once are served
        leases = [stream.acquire(0), stream.acquire(1)]
        assert len({lease.key[1] for lease in leases}) == 2
        for lease in leases:
            stream.release(lease)
