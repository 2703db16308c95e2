"""What huggingface_hub prints; loads neither torch nor transformers.

Its progress bars would break up a status that is drawn at the same time, so they are shown in one place only:
while weights are downloaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils.tqdm import disable_progress_bars, enable_progress_bars

from ..checkpoint.hub import downloads, resolve_model
from ..checkpoint.url_copy import OnFetch, copy_checkpoint, place_of
from ..spec.options import LoadOptions


def silence_hub() -> None:
    """Show no progress bars of downloads."""
    disable_progress_bars()


def download_weights(model: str, options: LoadOptions, *, shown: bool) -> None:
    """Download a Hub model's weights that are not in the cache, on a terminal with the Hub's own bars.

    The weights of a smaller model that drafts for it come after them.

    Raises:
        CheckpointError: the model is not there or has no weights that can be read.
    """
    wanted = [(model, options)]
    if options.draft_model is not None:
        wanted.append((options.draft_model, options.for_draft_model()))
    for name, options_of_it in wanted:
        if downloads(name, options_of_it):
            with hub_bars(shown=shown):
                resolve_model(name, options_of_it, weights=True)


def copy_from_url(model: str, options: LoadOptions, on_fetch: OnFetch) -> None:
    """Copy all files of a model at a URL to this machine.

    Raises:
        CheckpointError: the model is not there, or cannot be copied.
    """
    place = place_of(model, options)
    copy_checkpoint(place, weights=True, local_only=options.local_files_only, on_fetch=on_fetch)


@contextmanager
def hub_bars(*, shown: bool) -> Iterator[None]:
    """Let downloads show the Hub's own progress bars, on a terminal."""
    # the user's own setting comes first
    if shown and sys.stderr.isatty() and constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        enable_progress_bars()
    try:
        yield
    finally:
        disable_progress_bars()
