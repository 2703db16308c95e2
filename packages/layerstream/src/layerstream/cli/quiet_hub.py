"""Silence what huggingface_hub would print; loads neither torch nor transformers."""

from __future__ import annotations

import sys

from huggingface_hub.utils.tqdm import disable_progress_bars


def silence_hub() -> None:
    """Show no progress bars of downloads when stderr is not a terminal."""
    if not sys.stderr.isatty():
        disable_progress_bars()
