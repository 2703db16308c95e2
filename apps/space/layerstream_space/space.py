"""The app as a Space runs it: settings from the environment, and on ZeroGPU each case inside a call that is lent the GPU."""

from __future__ import annotations

import importlib
from collections.abc import Generator

import gradio as gr

from layerstream_compare import Case, Event

from .errors import VisitorError
from .job_runner import Runner, run_in_app_process
from .settings import Settings, is_zero_gpu, settings_of_space
from .ui.page import make_page
from .ui.services import make_services

ZERO_GPU_SECONDS = 60
"""ZeroGPU lends its GPU for so long at a time: one case must end within it."""


def space_page(settings: Settings | None = None) -> gr.Blocks:
    """Return the page for a Space.

    Args:
        settings: in place of the environment's.
    """
    return make_page(
        make_services(settings or settings_of_space(), zero_gpu_runner() if is_zero_gpu() else None)
    )


def zero_gpu_runner() -> Runner:
    """Return the in-process runner, wrapped by Hugging Face's package `spaces` so that each case is lent the GPU.

    Raises:
        ModuleNotFoundError: the package is not there; a ZeroGPU Space has it.
    """
    spaces = importlib.import_module("spaces")
    lent: Runner = spaces.GPU(duration=ZERO_GPU_SECONDS)(run_in_app_process)

    def run_lent(case: Case) -> Generator[Event, None, None]:
        try:
            yield from lent(case)
        except gr.Error as error:  # no GPU was free, or the visitor's share of it is used up
            raise VisitorError(str(error.message)) from error

    return run_lent
