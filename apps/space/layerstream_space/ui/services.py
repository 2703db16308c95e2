"""The parts that all pages share: the services behind them, and the blocks of HTML that show the views."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from layerstream_compare import SpareWorker

from ..job_runner import HEARTBEAT_S, CaseRunner, JobRunner, run_in_app_process
from ..models import Catalogue
from ..planner import Planner
from ..readiness import Readiness
from ..settings import Limits, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything behind the pages.

    Attributes:
        settings: how the app was started.
        catalogue: the models that may be run.
        planner: makes placement plans.
        job_runner: runs visitors' requests.
        readiness: keeps a worker ready; cases that run in this process do not use it.
    """

    settings: Settings
    catalogue: Catalogue
    planner: Planner
    job_runner: JobRunner
    readiness: Readiness


def make_services(settings: Settings, run_case: CaseRunner | None = None) -> Services:
    """Return the services of an app; nothing is started yet.

    Args:
        settings: how the app was started.
        run_case: runs one case; by default what the settings say.
    """
    catalogue, planner = Catalogue(settings), Planner()
    readiness = Readiness(SpareWorker(), heartbeat_s=HEARTBEAT_S)
    run_case = run_case or (run_in_app_process if settings.in_process else readiness.run_case)
    return Services(
        settings=settings,
        catalogue=catalogue,
        planner=planner,
        job_runner=JobRunner(settings, catalogue, planner, run_case),
        readiness=readiness,
    )


def block(value: str = "", *classes: str, **options: object) -> gr.HTML:
    """Return a block of HTML without gradio's own styling."""
    return gr.HTML(
        value, apply_default_css=False, js_on_load=None, elem_classes=["ls-block", *classes], **options
    )


def queue_line(elem_id: str) -> gr.HTML:
    """Return the line that shows the place in the queue; it covers the first line of the block below it."""
    return block("", "ls-queue", elem_id=elem_id)


def prompt_box(text: str, limits: Limits, *, lines: int, max_lines: int) -> gr.Textbox:
    """Return the box for a prompt."""
    return gr.Textbox(
        text,
        label="Prompt",
        lines=lines,
        max_lines=max_lines,
        max_length=limits.prompt_characters,
        elem_classes=["ls-prompt"],
    )


def run_buttons(label: str, *, start_id: str, stop_id: str) -> tuple[gr.Button, gr.Button]:
    """Return the button that starts a run and the one that stops it."""
    return (
        gr.Button(label, variant="primary", scale=3, min_width=120, elem_id=start_id),
        gr.Button("Stop", scale=1, min_width=90, interactive=False, elem_id=stop_id),
    )
