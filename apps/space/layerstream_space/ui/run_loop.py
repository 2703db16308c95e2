"""The loop over a running job: it draws the state as it changes, ends on Stop, and never leaves a page stuck.

Every page that runs a model is wired here. A page contributes a request, made from its inputs, and a function
that draws a `RunState`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ..errors import VisitorError
from ..job_runner import JobRunner, RunRequest
from ..models import strip_paths
from ..run_state import RunState
from ..view.elements import notice
from .services import Services

MODEL_QUEUE = "model"
"""Everything that runs a model shares one queue: two runs at once would distort each other's figures."""

DRAW_EVERY_S = 0.25
"""The shortest time between two drawings. Drawing takes processor time from the model being measured."""

Pictures = tuple[Any, ...]
"""The HTML for each of a page's blocks, in their order."""

_ENABLE_JS = """() => {
  document.body.classList.remove("ls-open");
  return {__type__: "update", interactive: true};
}"""


def follow_run(job_runner: JobRunner, request: RunRequest) -> Generator[RunState, None, None]:
    """Run `request` and yield its state whenever it should be drawn.

    That is at the start, when a case has ended, every `DRAW_EVERY_S` in between, and at the end. Closing the
    generator ends the run.

    Raises:
        VisitorError: why the request cannot be run.
    """
    drawn_s = 0.0
    state = None
    with closing(job_runner.start(request)) as updates:
        for update in updates:
            state, now_s = update.state, time.monotonic()
            has_result = update.event is not None and update.event.measurement is not None
            if has_result or now_s - drawn_s > DRAW_EVERY_S:
                drawn_s = now_s
                yield state
    if state is not None:
        yield state


@dataclass(slots=True)
class Sessions:
    """The state of each visitor's current run, by session, so that no visitor sees another's."""

    _states: dict[str, RunState] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, session: str, state: RunState) -> None:
        """Remember the state of a run that is under way."""
        with self._lock:
            self._states[session] = state

    def pop(self, session: str) -> RunState | None:
        """Return a visitor's state and forget it."""
        with self._lock:
            return self._states.pop(session, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPage:
    """One page's part of the loop.

    Attributes:
        make_request: makes a request from the values of `inputs`; a `VisitorError` is shown in place of the
            first picture.
        draw: draws a state; returns one picture for each of `blocks`.
        inputs: the page's controls.
        blocks: where the pictures go.
        start: the button that starts a run.
        stop: the button that ends it, even while it still waits in the queue.
        queue: where the place in the queue is shown.
        idle: a picture for each of `blocks` before any run; they replace an earlier run's pictures when a
            request is refused. The first one gives way to the message.
    """

    make_request: Callable[..., RunRequest]
    draw: Callable[[RunState], Pictures]
    inputs: Sequence[Any]
    blocks: Sequence[gr.HTML]
    start: gr.Button
    stop: gr.Button
    queue: gr.HTML
    idle: Pictures


def wire_run(services: Services, page: RunPage, *more_triggers: Any) -> None:
    """Wire a page's buttons to the loop.

    Args:
        services: for the limits and the job runner.
        page: the page.
        more_triggers: events that start a run, in addition to a click on `page.start`.
    """
    sessions = Sessions()
    triggers = [page.start.click, *more_triggers]
    outputs = [*page.blocks, page.start, page.stop]
    immediate: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    def on_run(request: gr.Request, *values: Any) -> Generator[Pictures, None, None]:
        yield from _run(services, sessions, session_of(request), page, values)

    def on_stop(request: gr.Request) -> Pictures:
        state = sessions.pop(session_of(request))
        if state is None:
            return (*_unchanged(page), *_buttons(running=False))
        state.stop()
        services.readiness.stopped()
        return (*page.draw(state), *_buttons(running=False))

    # Stop is enabled first, so that a run can be stopped while it waits in the queue. This must come before
    # the run: gradio serves an event's listeners one after another, so one behind it would wait for its end.
    gr.on(triggers, None, None, page.stop, js=_ENABLE_JS, **immediate)
    run = gr.on(
        triggers,
        on_run,
        list(page.inputs),
        outputs,
        show_progress="minimal",
        show_progress_on=page.queue,
        concurrency_id=MODEL_QUEUE,
        concurrency_limit=services.settings.limits.runs_at_once,
        trigger_mode="once",
        api_visibility="private",
    )
    page.stop.click(on_stop, None, outputs, cancels=[run], **immediate)


def _run(
    services: Services, sessions: Sessions, session: str, page: RunPage, values: Sequence[Any]
) -> Generator[Pictures, None, None]:
    yield (*_unchanged(page), *_buttons(running=True))
    shown: Pictures = (None,) * len(page.blocks)
    try:
        with closing(follow_run(services.job_runner, page.make_request(*values))) as states:
            for state in states:
                sessions.put(session, state)
                pictures = page.draw(state)
                changed = [new if new != old else gr.skip() for new, old in zip(pictures, shown, strict=True)]
                yield (*changed, gr.skip(), gr.skip())
                shown = pictures
        services.readiness.run_ended()
        yield (*_unchanged(page), *_buttons(running=False))
    except VisitorError as error:
        yield _failure(page, "This cannot be run", strip_paths(str(error)))
    except (
        Exception
    ):  # the page must never get stuck; the cause goes to the log because it is not for visitors
        logging.getLogger(__name__).exception("a run failed")
        yield _failure(
            page,
            "Something broke",
            "It is not your fault. Please try again; the cause is in the server's log.",
        )
    finally:
        sessions.pop(session)


def _failure(page: RunPage, title: str, text: str) -> Pictures:
    return (notice(title, text, kind="error"), *page.idle[1:], *_buttons(running=False))


def _unchanged(page: RunPage) -> Pictures:
    return tuple(gr.skip() for _ in page.blocks)


def _buttons(*, running: bool) -> tuple[gr.Button, gr.Button]:
    return gr.Button(interactive=not running), gr.Button(interactive=running)


def session_of(request: gr.Request) -> str:
    """Return what distinguishes one browser tab from another."""
    return str(request.session_hash)
