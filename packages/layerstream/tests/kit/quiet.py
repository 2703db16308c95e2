"""Run transformers quietly and on one thread.

Test kit. Threads do not speed up tiny matrices, and they slow down test workers that run side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers


@contextmanager
def quiet_and_single_threaded() -> Iterator[None]:
    """Silence transformers' log lines and progress bars and use one thread; restore everything at the end."""
    num_threads, verbosity = torch.get_num_threads(), transformers.logging.get_verbosity()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()
