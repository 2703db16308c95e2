"""What the pages share: settings, models, planner, runs, and each visitor's run of the moment."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import gradio as gr

from ..job_runner import JobRunner, Runner
from ..models import Catalogue
from ..planner import Planner
from ..run_state import RunState
from ..settings import Settings
from ..view.elements import notice

MODEL_QUEUE = "model"
"""One queue for everything that runs a model: figures of two runs at once would be of neither."""

DRAW_EVERY_S = 0.25
"""No page is drawn anew more often: drawing takes from the processors that are being measured."""


@dataclass(slots=True)
class Sessions:
    """The state of each visitor who has a run under way; nobody sees another's."""

    _states: dict[str, RunState] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, session: str, state: RunState) -> None:
        """Remember the state of a run that goes on."""
        with self._lock:
            self._states[session] = state

    def take(self, session: str) -> RunState | None:
        """Return a visitor's state, and forget it."""
        with self._lock:
            return self._states.pop(session, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything behind the pages.

    Attributes:
        settings: how the app was started.
        catalogue: the models.
        planner: its child answers questions about memory.
        job_runner: carries requests out.
    """

    settings: Settings
    catalogue: Catalogue
    planner: Planner
    job_runner: JobRunner


def make_services(settings: Settings, runner: Runner | None = None) -> Services:
    """Return the services of an app; nothing is started yet.

    Args:
        settings: how the app was started.
        runner: runs one case; by default what the settings say.
    """
    catalogue, planner = Catalogue(settings), Planner()
    return Services(
        settings=settings,
        catalogue=catalogue,
        planner=planner,
        job_runner=JobRunner(settings, catalogue, planner, runner),
    )


_CAN_BE_PRESSED = "() => ({__type__: 'update', interactive: true})"


def wire_run(
    services: Services,
    start: Sequence[Any],
    stop: gr.Button,
    *,
    on_run: Callable[..., Any],
    on_stop: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    queue: gr.HTML,
) -> None:
    """Wire a run: in the one queue of all models, its place in it shown in `queue`, ended by `stop`.

    Args:
        services: for the limits.
        start: events that start it, of components.
        stop: ends it, also while it waits.
        on_run: a generator.
        on_stop: returns the last picture; it runs after the generator was closed.
        inputs: of `on_run`.
        outputs: of both: the main picture first, the buttons that start and stop last.
        queue: where the place in the queue is shown.
    """
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    # A run that still waits in the queue can be stopped too. Before the run: an event's listeners are served one after another, and
    # whatever stood behind it would come when it is over.
    gr.on(list(start), None, None, stop, js=_CAN_BE_PRESSED, **quiet)
    running = gr.on(
        list(start),
        _never_broken(on_run, len(outputs)),
        list(inputs),
        list(outputs),
        show_progress="minimal",
        show_progress_on=queue,
        concurrency_id=MODEL_QUEUE,
        concurrency_limit=services.settings.limits.runs_at_once,
        trigger_mode="once",
        api_visibility="private",
    )
    stop.click(on_stop, None, list(outputs), cancels=[running], **quiet)


def _never_broken(on_run: Callable[..., Any], num_outputs: int) -> Callable[..., Any]:
    """Return `on_run`, which whatever breaks ends with a notice and a page that can start again; the log has the reason."""

    @wraps(on_run)
    def guarded(*values: Any) -> Generator[tuple[Any, ...], None, None]:
        try:
            yield from on_run(*values)
        except Exception:  # a page must never stand still; what the reason tells is not for visitors
            logging.getLogger(__name__).exception("a run broke")
            told = notice(
                "This broke",
                "The fault is not yours. Try once more; the server's log has the reason.",
                kind="error",
            )
            ready = gr.Button(interactive=True), gr.Button(interactive=False)
            yield told, *(gr.skip() for _ in range(num_outputs - 3)), *ready

    return guarded


def session_of(request: gr.Request) -> str:
    """Return what tells one visitor's tab from another's."""
    return str(request.session_hash)


def block(value: str = "", *classes: str, **options: object) -> gr.HTML:
    """Return one of our own blocks of HTML."""
    return gr.HTML(
        value, apply_default_css=False, js_on_load=None, elem_classes=["ls-block", *classes], **options
    )


def queue_line(elem_id: str) -> gr.HTML:
    """Return where the place in the queue is shown: over the first line of what stands below it."""
    return block("", "ls-queue", elem_id=elem_id)
