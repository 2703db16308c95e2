"""A service on several devices: they share the queue and every read, and nothing that goes wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.listener import LONG_S, Held, Listener
from kit.service import TEXTS, WORKLOAD, asked, plain
from kit.service import serving as serving_on

import layerstream as ls
from layerstream.errors import QueueFullError
from layerstream.testing import FakeAsyncRuntime
from layerstream.uses.serving.events import AnswerEnded, AnswerEvent, AnswerPart
from layerstream.uses.serving.service import GenerationService

KINDS: dict[str, Callable[[], dict[str, object]]] = {
    "two cpu": lambda: {"devices": ["cpu"] * 2, "budget": "min"},
    "three cpu": lambda: {"devices": ["cpu"] * 3, "budget": "min"},
    "resident": lambda: {"devices": ["cpu"] * 2, "budget": "4 GiB"},
    "asynchronous": lambda: {
        "runtime": (FakeAsyncRuntime(lag_s=0.0), FakeAsyncRuntime(name="fake:1", lag_s=0.001)),
        "budget": ls.MemoryBudget(device="min", host="min"),
    },
}


def serving(
    path: Path, kind: str = "two cpu", *, most_waiting: int = 500, **options: object
) -> AbstractContextManager[GenerationService]:
    return serving_on(path, most_waiting, **KINDS[kind](), **options)


def begin_on_each(
    service: GenerationService, requests: list[ls.GenerationRequest], gate: threading.Event
) -> list[Listener]:
    """Submit equal requests, and return once each device has begun; they go on when `gate` opens."""
    listeners: list[Listener] = [Held(gate) for _ in requests]
    for request, listener in zip(requests, listeners, strict=True):
        service.submit(request, listener)
    for listener in listeners[: len(service._lanes.lanes)]:
        assert listener.has_started.wait(LONG_S)
    return listeners


@pytest.mark.parametrize("kind", list(KINDS))
def test_answers_on_several_devices_are_those_of_plain_generation(kind: str, tiny_llama_dir: Path) -> None:
    requests = [asked(text, 6 + number) for number, text in enumerate(TEXTS * 2)] + [
        asked(text, do_sample=True, seed=number, temperature=0.9) for number, text in enumerate(TEXTS)
    ]
    # before the service runs: all threads share torch's random generator
    answers = [plain(tiny_llama_dir, request) for request in requests]
    with serving(tiny_llama_dir, kind) as service:
        gate = threading.Event()
        held = begin_on_each(service, [asked("x", 2)] * len(service._lanes.lanes), gate)
        listeners = [Listener() for _ in requests]
        for request, listener in zip(requests, listeners, strict=True):
            service.submit(request, listener)
        gate.set()
        for expected, listener in zip(answers, listeners, strict=True):
            ended = listener.wait()
            assert ended.result.error is None
            assert list(ended.result.tokens) == listener.tokens == expected
        for listener in held:
            listener.wait()
        assert all(lane.replica.group.sweeps > 2 for lane in service._lanes.lanes), "one did all of it"
        status = service.status()
    assert (status.answered, status.running, status.waiting) == (len(requests) + len(held), 0, 0)
    assert status.generated_tokens == sum(map(len, answers)) + 2 * len(held)
    assert status.prompt_tokens == sum(listener.wait().result.prompt_tokens for listener in listeners + held)


@pytest.mark.parametrize("kind", ["two cpu", "three cpu", "asynchronous"])
def test_devices_share_every_read(kind: str, tiny_llama_dir: Path) -> None:
    new_tokens = 10
    with serving(tiny_llama_dir, kind) as service:
        streamed, gate = service._streamed, threading.Event()
        listeners = begin_on_each(service, [asked([5] * 8, new_tokens)] * 6, gate)
        assert len({len(lane.running) for lane in service._lanes.lanes}) == 1
        gate.set()
        for listener in listeners:
            assert listener.wait().result.error is None
        report, status = streamed.report(), service.status()
        rows_bytes = sum(control.bytes_looked_up for control in streamed._controls)
    assert [lane.replica.group.sweeps for lane in service._lanes.lanes] == [new_tokens] * len(
        service._lanes.lanes
    )
    assert report.sweeps == status.sweeps == new_tokens
    units = streamed.plan.units
    swept_bytes = sum(unit.read_bytes for unit in units if unit.residency is not ls.Residency.DEVICE)
    # what is read ahead for a sweep that does not come
    ahead_bytes = 4 * streamed.plan.num_slots * max(unit.read_bytes for unit in units)
    assert ahead_bytes < new_tokens * swept_bytes / 2
    assert report.bytes_read - rows_bytes <= new_tokens * swept_bytes + ahead_bytes


@pytest.mark.parametrize("kind", ["two cpu", "asynchronous"])
def test_a_device_without_requests_holds_up_no_other(kind: str, tiny_llama_dir: Path) -> None:
    expected = plain(tiny_llama_dir, asked("The sea is", 12))
    with serving(tiny_llama_dir, kind) as service:
        assert service._streamed._prefetcher is not None
        # whoever waits for a device that does not come waits longer than the test
        service._streamed._prefetcher._patience_s = 3600.0
        for _ in range(2 if kind == "two cpu" else 1):
            alone, gate = Listener(), threading.Event()
            service.submit(asked("The sea is", 12), alone)
            assert list(alone.wait().result.tokens) == expected
            # both have one; the second device ends first, and comes back
            longer, shorter = begin_on_each(service, [asked("The sea is", 12), asked("x", 2)], gate)
            gate.set()
            shorter.wait()
            assert list(longer.wait().result.tokens) == expected
            service.submit(asked("The sea is", 12), back := Listener())
            assert list(back.wait().result.tokens) == expected


def test_a_device_that_comes_later_joins_the_sweeps_of_the_other(tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir) as service:
        late, early = Listener(), Listener()

        def then_submit(event: AnswerEvent) -> None:
            early(event)
            if len(early.tokens) == 4 and not late.heard:
                service.submit(asked("Two and two", 20), late)
                assert len(service._lanes.lanes[1].running) == 1
                assert late.has_started.wait(LONG_S)

        service.submit(asked("x", 40), then_submit)
        early.wait(), late.wait()
        report, plan = service._streamed.report(), service._streamed.plan
    assert early.tokens == plain(tiny_llama_dir, asked("x", 40))
    assert late.tokens == plain(tiny_llama_dir, asked("Two and two", 20))
    swept_bytes = sum(unit.read_bytes for unit in plan.units)
    # the late one has 20 sweeps; most of them are not its own
    assert report.bytes_read < 50 * swept_bytes


def test_an_error_of_a_request_reaches_no_other_on_any_device(tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir) as service:
        requests = [asked(text, 8) for text in TEXTS]
        requests[1:1] = [asked("x", 8, options={"no_such_option": 3})] * 2
        listeners = [Listener() for _ in requests]
        for request, listener in zip(requests, listeners, strict=True):
            service.submit(request, listener)
        results = [listener.wait().result for listener in listeners]
    assert [isinstance(result.error, ValueError) for result in results] == [0, 1, 1, 0, 0, 0]
    good = [list(result.tokens) for result in results if result.error is None]
    assert good == [plain(tiny_llama_dir, asked(text, 8)) for text in TEXTS]


@pytest.mark.parametrize("kind", ["two cpu", "three cpu", "asynchronous"])
@pytest.mark.parametrize("index", [0, 1])
def test_a_device_ends_alone(kind: str, index: int, tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir, kind) as service:
        gate = threading.Event()
        count = len(service._lanes.lanes)
        listeners = begin_on_each(service, [asked("The sea is", 20)] * count, gate)
        broken = service._lanes.lanes[index].replica.group
        broken.stop(OSError("this device is broken"), timeout_s=0.0)
        gate.set()
        errors = [listener.wait().result.error for listener in listeners]
        again = [Listener() for _ in range(2 * count)]
        for listener in again:
            service.submit(asked("The sea is", 20), listener)
        expected = plain(tiny_llama_dir, asked("The sea is", 20))
        assert [list(listener.wait().result.tokens) for listener in again] == [expected] * len(again)
    assert [isinstance(error, OSError) for error in errors] == [place == index for place in range(count)]
    assert [listener.tokens == expected for listener in listeners].count(True) == count - 1


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
def test_a_request_that_comes_while_the_sweeps_end_is_answered_by_the_next_ones(
    fails: bool, tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tiny_llama_dir) as service:
        group, late = service._lanes.lanes[0].replica.group, Listener()
        run = group.run

        def run_then_submit(*args: Any, **options: Any) -> object:
            monkeypatch.undo()
            results = run(*args, **options)
            service.submit(asked("The sea is", 5), late)
            if fails:
                raise OSError("this device is broken")
            return results

        monkeypatch.setattr(group, "run", run_then_submit)
        service.submit(asked("x", 3), early := Listener())
        assert early.wait().result.error is None
        assert list(late.wait().result.tokens) == plain(tiny_llama_dir, asked("The sea is", 5))


def test_an_error_before_the_first_sweep_ends_the_requests_that_it_was_for(
    tiny_llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise OSError("this device is broken")

    with serving(tiny_llama_dir) as service:
        monkeypatch.setattr(service._lanes.lanes[0].replica.group, "run", refuse)
        for expected in (OSError, type(None)):
            service.submit(asked("x", 3), listener := Listener())
            assert isinstance(listener.wait().result.error, expected)


def test_requests_that_sample_are_repeatable(tiny_llama_dir: Path) -> None:
    sampled = [asked(text, do_sample=True, seed=number, temperature=1.1) for number, text in enumerate(TEXTS)]
    expected = [plain(tiny_llama_dir, request) for request in sampled]
    dice = random.Random(3)
    with serving(tiny_llama_dir) as service:
        for _ in range(3):
            requests = [*sampled, *[asked(text, dice.randint(2, 14)) for text in TEXTS * 2]]
            dice.shuffle(requests)
            listeners = [Listener() for _ in requests]
            for request, listener in zip(requests, listeners, strict=True):
                service.submit(request, listener)
            found = {
                result.seed: list(result.tokens)
                for result in (listener.wait().result for listener in listeners)
                if result.seed is not None
            }
            assert found == dict(enumerate(expected))


def test_every_request_ends_once_on_several_devices(tiny_llama_dir: Path) -> None:
    dice = random.Random(7)
    longest = {text: plain(tiny_llama_dir, asked(text, 20)) for text in TEXTS}
    most = 0
    with serving(tiny_llama_dir, workload=ls.Workload(prompt_tokens=48, new_tokens=48)) as service:
        admission = service._admission

        def note(event: AnswerEvent) -> None:
            nonlocal most
            for lane in service._lanes.lanes:
                most = max(most, admission.bytes_of([entry.size for entry in tuple(lane.running)]))

        listeners = [Listener() for _ in range(120)]
        tickets = []

        def submit(some: list[Listener]) -> None:
            for heard in some:
                request = asked(dice.choice(TEXTS), dice.randint(1, 20))
                tickets.append(
                    service.submit(request, lambda event, heard=heard: (note(event), heard(event)))
                )
                if dice.random() < 0.4:
                    dice.choice(tickets).cancel()

        threads = [threading.Thread(target=submit, args=(listeners[k::3],)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ends = [listener.wait() for listener in listeners]
        status = service.status()
    for listener, end in zip(listeners, ends, strict=True):
        assert sum(isinstance(event, AnswerEnded) for event in listener.heard) == 1
        request = end.result.request
        whole = longest[str(request.prompt)][: request.max_new_tokens]
        assert listener.tokens == (whole[: len(listener.tokens)] if end.is_cancelled else whole)
    assert status.failed == 0
    assert status.answered + status.cancelled == 120
    assert 0 < most <= admission.room_bytes


@pytest.mark.parametrize("kind", ["two cpu", "asynchronous"])
def test_closing_waits_for_the_answers_of_all_devices_and_cancels_the_rest(
    kind: str, tiny_llama_dir: Path
) -> None:
    with ls.load(tiny_llama_dir, workload=WORKLOAD, **KINDS[kind]()) as streamed:  # type: ignore[arg-type]
        service = GenerationService(streamed)
        drained = [Listener() for _ in range(5)]
        for listener in drained:
            service.submit(asked("x", 6), listener)
        service.close(drain_s=LONG_S)
        assert not any(listener.wait().is_cancelled for listener in drained)
        other, gate = GenerationService(streamed), threading.Event()
        left = begin_on_each(other, [asked("x", 48)] * 4, gate)
        running, closer = other._lanes.running, threading.Thread(target=other.close)
        closer.start()
        assert all(entry.is_cancelled.wait(LONG_S) for entry in running) and len(running) == 4
        gate.set()
        closer.join()
        for listener in left:
            assert listener.wait().is_cancelled and len(listener.tokens) < 48
        assert streamed.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape == (1, 4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_model_that_is_closed_ends_the_requests_of_all_devices(kind: str, tiny_llama_dir: Path) -> None:
    streamed = ls.load(tiny_llama_dir, workload=WORKLOAD, **KINDS[kind]())  # type: ignore[arg-type]
    service = GenerationService(streamed)
    service._admission.most_running = 1
    has_token, is_closed = threading.Event(), threading.Event()
    streamed._on_close = is_closed.set
    listeners = [Listener() for _ in range(2 * len(streamed.replicas))]

    def until_closed(listener: Listener, event: AnswerEvent) -> None:
        listener(event)
        if isinstance(event, AnswerPart):
            has_token.set()
            # it keeps its device inside a forward, so the others may get no token
            assert is_closed.wait(LONG_S)

    for listener in listeners:
        service.submit(asked("x", 48), partial(until_closed, listener))
    assert has_token.wait(LONG_S)
    streamed.close()
    errors = [listener.wait().result.error for listener in listeners]
    assert {type(error) for error in errors} <= {ls.StreamClosedError, type(None)}
    assert isinstance(errors[-1], ls.StreamClosedError)
    service.close()


def test_a_full_queue_for_one_device_keeps_no_request_from_another(tiny_llama_dir: Path) -> None:
    sampled = asked("x", 2, do_sample=True, seed=1)
    with serving(tiny_llama_dir, most_waiting=1) as service:
        service._admission.most_running = 1
        gate = threading.Event()
        held = [Held(gate) for _ in range(3)]
        service.submit(sampled, held[0])
        waiting = service.submit(sampled, held[1])
        status = service.status()
        # the second device is free
        assert status.wait_s == status.sweep_s < waiting.first_token_eta_s
        greedy = service.submit(asked("x", 40), held[2])
        assert (waiting.position, greedy.position, greedy.number) == (1, 0, 3)
        for request in (sampled, asked("x", 2)):
            with pytest.raises(QueueFullError, match="1 requests wait already") as raised:
                service.submit(request, Listener())
            assert raised.value.waiting == 1
            assert raised.value.eta_s == pytest.approx(2 * status.token_s)
        gate.set()
        for listener in held:
            assert listener.wait().result.error is None
        service.submit(sampled, last := Listener())
        assert last.wait().result.error is None
        status = service.status()
    assert (status.answered, status.waiting) == (4, 0)


@pytest.mark.parametrize("kind", ["two cpu", "asynchronous"])
def test_a_verification_takes_its_turn_between_requests(kind: str, tiny_llama_dir: Path) -> None:
    expected = plain(tiny_llama_dir, asked("The sea is", 12))
    with serving(tiny_llama_dir, kind) as service:
        gate = threading.Event()
        listeners = begin_on_each(service, [asked("The sea is", 12)] * 4, gate)
        more = [Listener() for _ in range(6)]
        gate.set()
        for listener in more[:3]:
            service.submit(asked("The sea is", 12), listener)
        report = service._streamed.verify()
        for listener in more[3:]:
            service.submit(asked("The sea is", 12), listener)
        assert report.is_equal and report.units
        assert [list(listener.wait().result.tokens) for listener in listeners + more] == [expected] * 10
