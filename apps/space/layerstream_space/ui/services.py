"""What the pages share: settings, models, planner, runs, and each visitor's run of the moment."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import gradio as gr

from ..board import Board
from ..jobs import Runs
from ..models import Catalogue
from ..planner import Planner
from ..settings import Settings

MODEL_QUEUE = "model"
"""One queue for everything that runs a model: figures of two runs at once would be of neither."""


@dataclass(slots=True)
class Sessions:
    """The board of each visitor who has a run under way; nobody sees another's."""

    _boards: dict[str, Board] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, session: str, board: Board) -> None:
        """Remember the board of a run that goes on."""
        with self._lock:
            self._boards[session] = board

    def take(self, session: str) -> Board | None:
        """Return a visitor's board, and forget it."""
        with self._lock:
            return self._boards.pop(session, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything behind the pages.

    Attributes:
        settings: how the app was started.
        catalogue: the models.
        planner: its child answers questions about memory.
        runs: carries wishes out.
    """

    settings: Settings
    catalogue: Catalogue
    planner: Planner
    runs: Runs


def make_services(settings: Settings) -> Services:
    """Return the services of an app; nothing is started yet."""
    catalogue, planner = Catalogue(settings), Planner()
    return Services(settings=settings, catalogue=catalogue, planner=planner, runs=Runs(settings, catalogue, planner))


def session_of(request: gr.Request) -> str:
    """Return what tells one visitor's tab from another's."""
    return str(request.session_hash)


def block(value: str = "", **options: object) -> gr.HTML:
    """Return one of our own blocks of HTML."""
    return gr.HTML(value, apply_default_css=False, js_on_load=None, elem_classes=["ls-block"], **options)
