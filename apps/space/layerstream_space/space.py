"""The app as a Space.

Its settings come from the environment. On ZeroGPU each case runs inside a call that is lent the GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Generator

import gradio as gr

from layerstream_compare import Case, Event

from .errors import VisitorError
from .job_runner import CaseRunner, run_in_app_process
from .settings import Settings, is_zero_gpu, settings_of_space
from .ui.page import make_page
from .ui.services import make_services

ZERO_GPU_SECONDS = 60
"""How long ZeroGPU lends its GPU at a time. One case must end within it."""


def space_page(settings: Settings | None = None) -> gr.Blocks:
    """Return the page for a Space.

    Args:
        settings: by default those from the environment.
    """
    return make_page(
        make_services(settings or settings_of_space(), zero_gpu_runner() if is_zero_gpu() else None)
    )


def zero_gpu_runner() -> CaseRunner:
    """Return the in-process case runner, wrapped by Hugging Face's `spaces` to lend each case the GPU.

    Raises:
        ModuleNotFoundError: the package is not installed; every ZeroGPU Space has it.
    """
    spaces = importlib.import_module("spaces")
    run_with_gpu: CaseRunner = spaces.GPU(duration=ZERO_GPU_SECONDS)(run_in_app_process)

    def run_case(case: Case) -> Generator[Event, None, None]:
        try:
            yield from run_with_gpu(case)
        except gr.Error as error:  # no GPU was free, or the visitor's quota is used up
            raise VisitorError(str(error.message)) from error

    return run_case
