"""Locate the user's cache, where layerstream keeps files that it can recreate.

Room: bytes.

Source: the XDG base directory specification, https://specifications.freedesktop.org/basedir/latest/
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return layerstream's folder in `$XDG_CACHE_HOME`, else in `~/.cache`; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative path.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "layerstream"
