"""Silence what transformers and huggingface_hub would print next to a command's own output."""

from __future__ import annotations

from transformers.utils import logging

from .quiet_hub import silence_hub


def silence_libraries() -> None:
    """Show only transformers' errors and, when stderr is not a terminal, no progress bars of downloads."""
    # transformers' warnings are about choices that layerstream makes for the user
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    silence_hub()
