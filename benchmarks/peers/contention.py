"""How much reading and computing slow each other down: an estimate for a pass that does both."""

from __future__ import annotations

import threading
from collections.abc import Callable
from statistics import median

from peers.disk_speed import DiskSpeed


def measure_contention(disk: DiskSpeed, compute: Callable[[], list[float]]) -> dict[str, float]:
    """Return the time of a pass in memory and the disk's speed, each alone and while the other runs.

    Args:
        disk: reads the blocks' files, in this process.
        compute: runs passes in another process and returns the seconds of each; it must take longer than one
            reading of the files.
    """
    compute_s = median(compute())
    bytes_per_s = disk.measure()
    rates: list[float] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            rate = disk.measure()
            if not is_over.is_set():
                rates.append(rate)

    reading = threading.Thread(target=read)
    reading.start()
    try:
        compute_while_reading_s = median(compute())
    finally:
        is_over.set()
        reading.join()
    return {
        "compute_s": compute_s,
        "bytes_per_s": bytes_per_s,
        "compute_while_reading_s": compute_while_reading_s,
        "bytes_per_s_while_computing": median(rates),
    }


def estimate_s(contention: dict[str, float], num_bytes: int, bytes_per_s: float) -> float:
    """Estimate the seconds to read `num_bytes` and compute one pass, overlapping as long as both last.

    Args:
        contention: what `measure_contention` found; of the disk, the slowdown alone is used.
        num_bytes: what the pass reads.
        bytes_per_s: the disk's speed alone, at the time of the passes that the estimate stands beside.
    """
    compute_s = contention["compute_while_reading_s"]
    slowdown = contention["bytes_per_s_while_computing"] / contention["bytes_per_s"]
    rate = bytes_per_s * slowdown
    left_bytes = num_bytes - compute_s * rate
    if left_bytes > 0:
        return compute_s + left_bytes / bytes_per_s
    read_s = num_bytes / rate
    return read_s + (1.0 - read_s / compute_s) * contention["compute_s"]
