"""A service on a tiny streamed model: requests come late, leave early, wait for room, and answer exactly."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
import torch
from kit.compare import reference
from kit.listener import LONG_S, Held, Listener
from kit.service import TEXTS, WORKLOAD, asked, plain, serving
from transformers import AutoTokenizer

import layerstream as ls
from layerstream.errors import QueueFullError, ServiceClosedError
from layerstream.uses.serving.events import AnswerEnded, AnswerPart, AnswerStarted
from layerstream.uses.serving.service import GenerationService


@pytest.mark.parametrize("draft", [None, "lookup", "int8"])
def test_answers_that_share_sweeps_are_those_of_plain_generation(
    draft: str | None, tiny_llama_dir: Path
) -> None:
    requests = [asked(text) for text in TEXTS] + [
        asked(text, do_sample=True, seed=number, temperature=0.9) for number, text in enumerate(TEXTS)
    ]
    # before the service runs: all threads share torch's random generator
    answers = [plain(tiny_llama_dir, request) for request in requests]
    with serving(tiny_llama_dir, draft=draft) as service:
        listeners = [Listener() for _ in requests]
        for request, listener in zip(requests, listeners, strict=True):
            service.submit(request, listener)
        for expected, listener in zip(answers, listeners, strict=True):
            ended = listener.wait()
            assert ended.result.error is None
            assert list(ended.result.tokens) == listener.tokens == expected
            assert ended.result.text == listener.text
            assert ended.result.text == service.tokenizer.decode(expected, skip_special_tokens=True)
            assert ended.result.finish_reason == "length"
            assert isinstance(listener.heard[0], AnswerStarted)


def test_a_request_that_comes_late_shares_the_running_sweeps(tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir) as service:
        alone = Listener()
        service.submit(asked("x", 40), alone)
        alone.wait()
        before = service.status().sweeps
        early, late = Listener(), Listener()

        def then_submit(event: object) -> None:
            early(event)  # type: ignore[arg-type]
            if len(early.tokens) == 4 and not late_tickets:
                late_tickets.append(service.submit(asked("Two and two", 20), late))

        late_tickets: list[object] = []
        service.submit(asked("x", 40), then_submit)
        early.wait(), late.wait()
        assert service.status().sweeps - before <= 42, "the late one took no sweep of its own"
        assert early.tokens == alone.tokens
        assert late.tokens == plain(tiny_llama_dir, asked("Two and two", 20))


def test_requests_are_admitted_in_order(tiny_llama_dir: Path) -> None:
    order: list[int] = []
    with serving(tiny_llama_dir, workload=ls.Workload(prompt_tokens=48, new_tokens=48)) as service:
        gate, listeners = threading.Event(), []
        service.submit(asked("x", 2), Held(gate))

        def note(number: int, listener: Listener, event: object) -> None:
            if isinstance(event, AnswerStarted):
                order.append(number)
            listener(event)  # type: ignore[arg-type]

        for number in range(6):
            listener = Listener()
            listeners.append(listener)
            service.submit(asked("The sea is", 6), lambda e, n=number, heard=listener: note(n, heard, e))
        gate.set()
        for listener in listeners:
            listener.wait()
    assert order == list(range(6))


def test_a_new_request_is_told_its_wait_before_and_after_anything_was_measured(tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir, workload=ls.Workload(prompt_tokens=48, new_tokens=48)) as service:
        planned = service.status()
        assert planned.wait_s == planned.sweep_s == service._streamed.plan.cost.sweep_s > 0
        gate, holder, behind = threading.Event(), Listener(), Listener()

        def hold(event: object) -> None:
            if isinstance(event, AnswerPart):
                gate.wait(LONG_S)
            holder(event)  # type: ignore[arg-type]

        whole_room = asked([5] * 48, 48)
        service.submit(whole_room, hold)
        ticket = service.submit(whole_room, behind)
        holder.has_started.wait(LONG_S)
        status = service.status()
        # the one that runs and the one that waits each take up to 48 sweeps, and the first token one more
        assert status.wait_s == pytest.approx(status.sweep_s * (48 + 48 + 1))
        assert status.wait_s > ticket.first_token_eta_s
        gate.set()
        holder.wait(), behind.wait()
        assert service.status().wait_s == service.status().sweep_s


def test_what_runs_together_fits_the_room(tiny_llama_dir: Path) -> None:
    most = 0
    with serving(tiny_llama_dir, workload=ls.Workload(prompt_tokens=48, new_tokens=48)) as service:
        admission = service._admission

        def note(event: object) -> None:
            nonlocal most
            most = max(most, admission.bytes_of([entry.size for entry in service._lanes.running]))

        listeners = [Listener() for _ in range(12)]
        for listener in listeners:
            service.submit(
                asked("The sea is " * 3, 30), lambda event, heard=listener: (heard(event), note(event))
            )
        for listener in listeners:
            listener.wait()
        assert 0 < most <= admission.room_bytes
        status = service.status()
    assert (status.answered, status.running, status.waiting) == (12, 0, 0)
    assert status.generated_tokens == 12 * 30


def test_positions_and_estimates_count_down(tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir, workload=ls.Workload(prompt_tokens=48, new_tokens=48)) as service:
        gate = threading.Event()
        held = Held(gate)
        service._admission.most_running = 1
        first = service.submit(asked("x", 10), held)
        assert held.has_started.wait(LONG_S)
        listeners = [Listener() for _ in range(3)]
        tickets = [service.submit(asked("x", 10), listener) for listener in listeners]
        assert first.position == 0
        assert [ticket.position for ticket in tickets] == [1, 2, 3]
        waits = [ticket.first_token_eta_s for ticket in tickets]
        assert 0 < waits[0] < waits[1] < waits[2]
        assert all(ticket.eta_s > wait for ticket, wait in zip(tickets, waits, strict=True))
        tickets[0].cancel()
        assert [ticket.position for ticket in tickets] == [0, 1, 2]
        assert listeners[0].wait().is_cancelled
        gate.set()
        assert not listeners[2].wait().is_cancelled
        assert tickets[2].first_token_eta_s == tickets[2].eta_s == 0.0


@pytest.mark.parametrize("budget", ["min", "auto"])
def test_a_cancelled_request_leaves_and_the_others_go_on(budget: str, tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir, budget=budget) as service:
        leaving, staying = Listener(), Listener()
        tickets = []

        def leave(event: object) -> None:
            leaving(event)  # type: ignore[arg-type]
            if len(leaving.tokens) == 3:
                tickets[0].cancel()
                tickets[0].cancel()

        staying_ticket = service.submit(asked("Two and two", 24), staying)
        gate = threading.Event()
        tickets.append(service.submit(asked("x", 40), lambda event: (gate.wait(LONG_S), leave(event))))
        gate.set()
        ended = leaving.wait()
        assert ended.is_cancelled and ended.result.error is None
        assert 3 <= len(ended.result.tokens) < 40
        assert not staying.wait().is_cancelled
        assert staying.tokens == plain(tiny_llama_dir, asked("Two and two", 24))
        assert staying_ticket.number == 1
        assert service.status().cancelled == 1


def test_an_error_ends_one_request_alone(tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir) as service:
        bad, good = Listener(), Listener()
        service.submit(asked("x", 8, options={"no_such_option": 3}), bad)
        service.submit(asked("Two and two", 8), good)
        assert isinstance(bad.wait().result.error, ValueError)
        assert good.wait().result.error is None
        assert service.status().failed == 1


def test_a_stop_text_ends_the_answer_and_is_left_out(tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir) as service:
        whole, stopped = Listener(), Listener()
        service.submit(asked("The sea is", 30), whole)
        text = whole.wait().result.text
        stop = text[8:11]
        service.submit(asked("The sea is", 30, stop=(stop,)), stopped)
        result = stopped.wait().result
    assert result.finish_reason == "stop"
    assert result.text == stopped.text == text[: text.index(stop)]
    assert len(result.tokens) < 30


def test_the_chances_of_tokens_are_those_of_the_models_logits(tiny_llama_dir: Path) -> None:
    request = asked("The sea is", 5)
    with serving(tiny_llama_dir, draft="lookup") as service:
        listener = Listener()
        service.submit(request, listener, top_logprobs=2)
        tokens = listener.wait().result.tokens
        chances = [
            chance for event in listener.heard if isinstance(event, AnswerPart) for chance in event.chances
        ]
    ids = AutoTokenizer.from_pretrained(tiny_llama_dir)("The sea is", return_tensors="pt")["input_ids"]
    out = reference(tiny_llama_dir).generate(
        ids, max_new_tokens=5, do_sample=False, eos_token_id=None,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    for token, chance, logits in zip(tokens, chances, out.logits, strict=True):
        expected = logits[0].float().log_softmax(-1)
        assert chance.token == token
        assert chance.logprob == pytest.approx(float(expected[token]))
        assert chance.top == tuple(zip(*[each.tolist() for each in expected.topk(2)][::-1], strict=True))


def test_what_can_never_fit_is_refused_with_the_figures(tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir) as service:
        with pytest.raises(ls.PlanError, match="100 new ones were asked for; this service has room for 96"):
            service.submit(asked("x", 100), Listener())
        with pytest.raises(ls.PlanError, match="leave out num_beams"):
            service.submit(asked("x", num_beams=2), Listener())


def test_a_full_queue_says_so(tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir, most_waiting=2) as service:
        gate = threading.Event()
        held = Held(gate)
        service._admission.most_running = 1
        service.submit(asked("x", 2), held)
        assert held.has_started.wait(LONG_S)
        waiting = [Listener(), Listener()]
        for listener in waiting:
            service.submit(asked("x", 2), listener)
        with pytest.raises(QueueFullError, match="2 requests wait already") as raised:
            service.submit(asked("x", 2), Listener())
        assert raised.value.waiting == 2 and raised.value.eta_s > 0
        gate.set()
        for listener in waiting:
            listener.wait()


def test_closing_waits_for_answers_and_cancels_the_rest(tiny_llama_dir: Path) -> None:
    with ls.load(tiny_llama_dir, budget="min", workload=WORKLOAD) as streamed:
        service = GenerationService(streamed)
        drained = Listener()
        service.submit(asked("x", 6), drained)
        service.close(drain_s=LONG_S)
        assert not drained.wait().is_cancelled
        with pytest.raises(ServiceClosedError):
            service.submit(asked("x", 6), Listener())
        other, left = GenerationService(streamed), [Listener() for _ in range(3)]
        for listener in left:
            other.submit(asked("x", 48), listener)
        assert left[0].has_started.wait(LONG_S)
        other.close()
        assert any(listener.wait().is_cancelled for listener in left)
        assert streamed.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape == (1, 4)


def test_a_request_whose_device_is_held_by_another_forward_leaves_at_once(tiny_llama_dir: Path) -> None:
    with serving(tiny_llama_dir) as service:
        service._admission.most_running = 1
        leaving, next_one, last = Listener(), Listener(), Listener()
        with service._streamed._controls[0].gate.shut():
            ticket = service.submit(asked("x", 4), leaving)
            waiting = service.submit(asked("x", 4), next_one)
            assert (ticket.position, waiting.position) == (0, 1)
            ticket.cancel()
            assert leaving.wait().is_cancelled and not leaving.has_started.is_set()
            assert waiting.position == 0
        assert next_one.wait().result.error is None
        with service._streamed._controls[0].gate.shut():
            service.submit(asked("x", 4), last)
            closer = threading.Thread(target=service.close)
            closer.start()
            assert last.wait().is_cancelled
        closer.join()
        assert (service.status().answered, service.status().cancelled) == (1, 2)


def test_every_request_ends_once_whatever_happens(tiny_llama_dir: Path) -> None:
    dice = random.Random(5)
    with serving(tiny_llama_dir, most_waiting=500) as service:
        listeners = [Listener() for _ in range(120)]
        tickets = []

        def submit(some: list[Listener]) -> None:
            for listener in some:
                tickets.append(service.submit(asked(dice.choice(TEXTS), dice.randint(1, 20)), listener))
                if dice.random() < 0.4:
                    dice.choice(tickets).cancel()

        threads = [threading.Thread(target=submit, args=(listeners[k::3],)) for k in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ends = [listener.wait() for listener in listeners]
        status = service.status()
    for listener in listeners:
        assert sum(isinstance(event, AnswerEnded) for event in listener.heard) == 1
    assert status.failed == 0
    assert status.cancelled == sum(end.is_cancelled for end in ends) > 0
    assert status.answered == 120 - status.cancelled
    for listener, end in zip(listeners, ends, strict=True):
        if not end.is_cancelled:
            assert listener.tokens == cached_plain(tiny_llama_dir, end.result.request)


def cached_plain(path: Path, request: ls.GenerationRequest) -> list[int]:
    key = (request.prompt, 20)
    if key not in _PLAIN:
        _PLAIN[key] = plain(path, asked(str(request.prompt), 20))
    return _PLAIN[key][: request.max_new_tokens]


_PLAIN: dict[tuple[object, int], list[int]] = {}


def test_a_model_that_is_closed_ends_what_was_running_and_what_waited(tiny_llama_dir: Path) -> None:
    streamed = ls.load(tiny_llama_dir, budget="min", workload=WORKLOAD)
    service = GenerationService(streamed)
    service._admission.most_running = 1
    listener, waiting = Listener(), Listener()
    service.submit(asked("x", 48), listener)
    service.submit(asked("x", 48), waiting)
    assert listener.has_token.wait(LONG_S)
    streamed.close()
    for each in (listener, waiting):
        assert isinstance(each.wait().result.error, ls.StreamClosedError)
    with pytest.raises(ServiceClosedError):
        service.submit(asked("x", 2), Listener())
    service.close()


def test_what_waits_while_a_model_is_closed_is_told_so(tiny_llama_dir: Path) -> None:
    streamed = ls.load(tiny_llama_dir, budget="min", workload=WORKLOAD)
    service = GenerationService(streamed)
    service._admission.most_running = 1
    is_closed, running, waiting = threading.Event(), Listener(), Listener()

    def until_closed(event: object) -> None:
        running(event)  # type: ignore[arg-type]
        if isinstance(event, AnswerPart):
            assert is_closed.wait(LONG_S)

    service.submit(asked("x", 2), until_closed)
    service.submit(asked("x", 2), waiting)
    assert running.has_token.wait(LONG_S)

    def let_it_end() -> None:  # nothing was stopped yet
        is_closed.set()
        waiting.wait()

    streamed._on_close = let_it_end
    streamed.close()
    assert running.wait().result.error is None
    with pytest.raises(ls.StreamClosedError, match="this streamed model is closed: load it again"):
        raise waiting.wait().result.error or AssertionError
    service.close()
