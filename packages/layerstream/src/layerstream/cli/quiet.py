"""Silence what transformers and huggingface_hub would print next to a command's own output."""

from __future__ import annotations

import sys

from huggingface_hub.utils.tqdm import disable_progress_bars
from transformers.utils import logging


def silence_libraries() -> None:
    """Show only transformers' errors and, when stderr is not a terminal, no progress bars of downloads."""
    # transformers' warnings are about choices that layerstream makes for the user
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not sys.stderr.isatty():
        disable_progress_bars()
