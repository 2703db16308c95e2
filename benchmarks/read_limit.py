"""Limit how fast processes read from a disk, by a control group of version 1, where there is one.

Direct reads count; what lies in the page cache is not read from the disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup/blkio")
FILE = "blkio.throttle.read_bps_device"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimit:
    """A limit on reads that processes share.

    Attributes:
        group: the folder of the control group; empty where none can be made, and then nothing is limited.
        device: the numbers of the block device, as `major:minor`.
    """

    group: str = ""
    device: str = ""

    def enter(self) -> None:
        """Put the calling process under the limit, permanently."""
        if self.group:
            Path(self.group, "cgroup.procs").write_text(str(os.getpid()))

    def set(self, bytes_per_s: int) -> None:
        """Change the limit for all processes under it; 0 is none."""
        if self.group:
            Path(self.group, FILE).write_text(f"{self.device} {bytes_per_s}")


@contextmanager
def read_limited(folder: Path) -> Iterator[ReadLimit]:
    """Yield a limit on reads from the disk of `folder`, which begins with none.

    The control group is removed afterwards; its processes must have ended by then.
    """
    limit = _create(folder)
    try:
        yield limit
    finally:
        if limit.group:
            Path(limit.group).rmdir()


def _create(folder: Path) -> ReadLimit:
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines() if line]
    own = next((path for _, controllers, path in lines if "blkio" in controllers.split(",")), None)
    device = _disk_of(folder)
    if own is None or not device:
        return ReadLimit()
    group = ROOT / own.lstrip("/") / f"layerstream-bench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        return ReadLimit()
    limit = ReadLimit(group=str(group), device=device)
    try:
        # where no such file system is mounted, this is a plain folder, and there is no file to change
        with (group / FILE).open("r+") as file:
            file.write(f"{device} 0")
    except OSError:
        group.rmdir()
        return ReadLimit()
    return limit


def _disk_of(folder: Path) -> str:
    """Return the numbers of the disk that holds a folder: limits are on whole disks, not on partitions."""
    number = folder.resolve().stat().st_dev
    device = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not device.exists():
        return ""
    if (device / "partition").exists():
        device = device.resolve().parent
    return (device / "dev").read_text().strip()
