"""Look at a local checkpoint before anything slow is imported; loads neither torch nor transformers."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint.hub import resolve_model
from ..checkpoint.index import open_checkpoint
from ..spec.options import LoadOptions


def check_local_model(model: str, options: LoadOptions) -> None:
    """Refuse a directory that is no checkpoint, and a path at which there is none.

    Raises:
        CheckpointError: the model cannot be loaded from there.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        open_checkpoint(directory / options.subfolder, model, variant=options.variant)
    else:
        resolve_model(model, options, weights=False)
