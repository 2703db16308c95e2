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
    one.is_sweeping = False
    sweep(other, 4)
    assert devices.sweeps == 16
    other.is_sweeping = False
    assert not devices.is_sweeping
    devices.begin_sweeps(one)
    sweep(one, 1)
    assert devices.sweeps == 17
