"""Hear the events of requests in a service.

Test kit. It knows the events alone.
"""

from __future__ import annotations

import threading

from layerstream.uses.serving.events import AnswerEnded, AnswerEvent, AnswerPart, AnswerStarted

LONG_S = 60.0


class Listener:
    """Keeps what a request tells; `wait` returns its last event."""

    def __init__(self) -> None:
        self.heard: list[AnswerEvent] = []
        self.has_started, self.has_token, self._has_ended = (threading.Event() for _ in range(3))

    def __call__(self, event: AnswerEvent) -> None:
        self.heard.append(event)
        match event:
            case AnswerStarted():
                self.has_started.set()
            case AnswerPart(tokens=tokens) if tokens:
                self.has_token.set()
            case AnswerEnded():
                self._has_ended.set()

    def wait(self) -> AnswerEnded:
        assert self._has_ended.wait(LONG_S), "no last event"
        last = self.heard[-1]
        assert isinstance(last, AnswerEnded)
        return last

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.heard if isinstance(event, AnswerPart))

    @property
    def tokens(self) -> list[int]:
        return [token for event in self.heard if isinstance(event, AnswerPart) for token in event.tokens]


class Held(Listener):
    """Keeps its request from starting until `gate` opens."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__()
        self._gate = gate

    def __call__(self, event: AnswerEvent) -> None:
        super().__call__(event)
        if isinstance(event, AnswerStarted):
            assert self._gate.wait(LONG_S)
