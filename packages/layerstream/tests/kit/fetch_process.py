"""A process that fetches one URL into one folder: `python -m kit.fetch_process URL FOLDER`.

Test kit.
"""

from __future__ import annotations

import sys
from pathlib import Path

from layerstream.checkpoint.fetch import fetch

if __name__ == "__main__":
    fetch(sys.argv[1], Path(sys.argv[2]), on_progress=lambda progress: print(progress.done_bytes, flush=True))  # noqa: T201
    print("done", flush=True)  # noqa: T201
