"""Answer the rows of a parquet file on a Ray that is there; started again, it goes on where it was."""

from __future__ import annotations

import json
import sys
from typing import Any

import ray

import layerstream.ray.verbs as verbs
from ray_steps.counting_worker import CountingWorker


def answer(rows: str, answers: str, settings: dict[str, Any]) -> None:
    """Answer the rows, and write the answers."""
    verbs.GenerationWorker = CountingWorker  # type: ignore[misc]
    verbs.generate(ray.data.read_parquet(rows), prompt="text", **settings).write_parquet(answers)


if __name__ == "__main__":
    ray.init(address=sys.argv[1], log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    answer(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
