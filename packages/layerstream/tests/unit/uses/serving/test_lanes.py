"""Which request goes to which device: a table of rooms, sizes and who samples; no model."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from layerstream.planning.admission import Admission, RequestBytes
from layerstream.uses.batching.packing import TokenizedRequest
from layerstream.uses.batching.requests import GenerationRequest
from layerstream.uses.serving.lanes import Lanes
from layerstream.uses.serving.ticket import Entry, Stage

ROOM = 10


class Room(Admission):
    """Room for `ROOM` bytes of requests on each device."""

    def __init__(self) -> None:
        self.room_bytes, self.most_running = ROOM, None


def entry(number: int, size: int, *, samples: bool = False) -> Entry:
    nothing: Any = None
    return Entry(
        number=number,
        tokenized=TokenizedRequest(index=0, request=GenerationRequest(prompt="x"), ids=[1]),
        size=RequestBytes(kept=size, inside=0),
        seed=5 if samples else None,
        top_logprobs=None,
        scores_prompt=False,
        on_event=nothing,
        tokenizer=nothing,
    )


def lanes(num_devices: int = 2) -> Lanes:
    replicas: Any = [SimpleNamespace(group=SimpleNamespace(sweeps=0)) for _ in range(num_devices)]
    return Lanes(replicas, Room())


def queue(*sizes: int | str) -> deque[Entry]:
    """Return a queue of requests by size; `"s3"` is one of size 3 that samples."""
    return deque(
        entry(number, int(str(size).lstrip("s")), samples=str(size).startswith("s"))
        for number, size in enumerate(sizes)
    )


def placed(devices: Lanes) -> list[list[int]]:
    return [[each.number for each in lane.running] for lane in devices.lanes]


@pytest.mark.parametrize(
    ("sizes", "expected", "left"),
    [
        ([3, 3, 3, 3], [[0, 2], [1, 3]], []),
        ([6, 1, 1, 1, 1], [[0], [1, 2, 3, 4]], []),
        ([6, 6, 6, 1], [[0], [1]], [2, 3]),
        (["s3", "s3", "s3"], [[0, 1, 2], []], []),
        (["s6", "s6", 3, "s1", 3], [[0], [2, 4]], [1, 3]),
        (["s6", "s6", 6, 6, 1], [[0], [2]], [1, 3, 4]),
        ([5, 5, "s6", 5, 5], [[0], [1, 3]], [2, 4]),
    ],
    ids=[
        "equal ones take turns",
        "the emptiest device is next",
        "one that fits nowhere holds up all behind it",
        "those that sample go to the first",
        "those that wait for the first leave the second to others, in their own order",
        "nobody goes where one in front waits",
        "nothing overtakes one that samples on the first device",
    ],
)
def test_requests_go_to_the_emptiest_device_with_room_in_their_order(
    sizes: list[int | str], expected: list[list[int]], left: list[int]
) -> None:
    devices, waiting = lanes(), queue(*sizes)
    devices.admit(waiting)
    assert placed(devices) == expected
    assert [each.number for each in waiting] == left
    assert {each.stage for each in waiting} <= {Stage.WAITING}
    assert {each.stage for each in devices.running} == {Stage.RUNNING}
    assert [lane.take() for lane in devices.lanes] == [lane.running for lane in devices.lanes]
    assert [lane.take() for lane in devices.lanes] == [[], []]


def test_one_that_samples_is_next_on_the_first_device_however_many_come_after_it() -> None:
    devices = lanes()
    waiting = queue(5, 5, 5, "s6", *[5] * 20)
    devices.admit(waiting)
    assert placed(devices) == [[0, 2], [1, 4]]
    for _ in range(6):  # the second device goes on with those behind
        devices.remove(devices.lanes[1].running[0])
        devices.admit(waiting)
        assert placed(devices)[0] == [0, 2]
    assert [each.number for each in waiting][:2] == [3, 11]
    for number in (0, 2):
        devices.remove(next(each for each in devices.running if each.number == number))
        devices.admit(waiting)
    assert placed(devices)[0] == [3]


def test_a_request_that_leaves_before_its_device_took_it_is_not_taken() -> None:
    devices, waiting = lanes(1), queue(1, 1)
    devices.admit(waiting)
    first, second = devices.running
    devices.remove(first)
    assert devices.lanes[0].take() == [second] == devices.running


def test_sweeps_that_devices_make_together_count_once() -> None:
    devices = lanes()
    one, other = devices.lanes

    def sweep(lane: Any, count: int) -> None:
        lane.replica.group.sweeps += count

    assert not devices.is_sweeping
    devices.begin_sweeps(one)
    sweep(one, 7)
    devices.begin_sweeps(other)
    for lane in (one, other):
        sweep(lane, 5)
    assert devices.sweeps == 12 and devices.is_sweeping
    devices.end_sweeps(one)
    sweep(other, 4)
    assert devices.sweeps == 16
    devices.end_sweeps(other)
    assert not devices.is_sweeping
    devices.begin_sweeps(one)
    sweep(one, 1)
    assert devices.sweeps == 17
    # out of step: one makes 100 sweeps while the other makes 50
    devices.begin_sweeps(other)
    sweep(one, 100)
    sweep(other, 50)
    assert devices.sweeps == 117
    devices.end_sweeps(one)
    assert devices.sweeps == 117
    found = []
    for _ in range(4):
        sweep(other, 1)
        found.append(devices.sweeps)
    # in step, the first of them would be the one that the device that ended has made
    assert found == [117, 118, 119, 120]


def test_a_device_in_step_may_begin_its_last_sweep_after_the_other_has_ended() -> None:
    devices = lanes()
    one, other = devices.lanes
    for lane in (one, other):
        devices.begin_sweeps(lane)
    one.replica.group.sweeps = 10
    other.replica.group.sweeps = 9
    devices.end_sweeps(one)
    other.replica.group.sweeps = 10
    devices.end_sweeps(other)
    assert devices.sweeps == 10


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], [0.0]),
        ([1, 1], [0.0]),
        ([6, 6, 6], [6.0, 6.0]),
        (["s6", "s6"], [6.0, 0.0]),
        (["s6", 3, "s6"], [6.0, 0.0]),
        (["s6", 4, "s6", 7, "s6"], [6.0, 4.0, 12.0, 11.0]),
        (["s4", 9, "s7", "s3", 8], [4.0, 11.0, 9.0, 14.0]),
    ],
    ids=[
        "nobody is there",
        "nobody waits",
        "the next place is on either device",
        "the second device is free for a greedy one",
        "nobody waits for the second device",
        "each waits for its own device",
        "a greedy one takes the place that is free first",
    ],
)
def test_a_request_starts_when_a_device_that_it_may_go_to_has_a_place(
    sizes: list[int | str], expected: list[float]
) -> None:
    devices, waiting = lanes(), queue(*sizes)
    for each in waiting:  # each has as many tokens to generate as it has bytes
        request = GenerationRequest(prompt="x", max_new_tokens=each.size.kept)
        each.tokenized = TokenizedRequest(index=0, request=request, ids=[1])
    devices.admit(waiting)
    assert devices.starts_s(waiting, 1.0) == expected
