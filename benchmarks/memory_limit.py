"""Limit the memory of a child process: by a control group where we may create one, else by RLIMIT_DATA.

A control group counts the page cache too; RLIMIT_DATA counts private writable memory.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A memory limit that a process applies to itself.

    Attributes:
        kind: `"cgroup v1"`, `"cgroup v2"`, `"RLIMIT_DATA"` or `"none"`.
        num_bytes: the limit.
        group: the folder of the control group; empty without one.
    """

    kind: str
    num_bytes: int
    group: str = ""

    def enter(self) -> None:
        """Put the calling process under the limit, permanently."""
        if self.group:
            Path(self.group, "cgroup.procs").write_text(str(os.getpid()))
        elif self.kind == "RLIMIT_DATA":
            resource.setrlimit(resource.RLIMIT_DATA, (self.num_bytes, self.num_bytes))

    def peak_bytes(self) -> int | None:
        """Return the group's peak, page cache included; None without a group or a kernel that reports it."""
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            path = Path(self.group, name) if self.group else None
            if path is not None and path.exists():
                return int(path.read_text())
        return None


@contextmanager
def limited(num_bytes: int | None, label: str = "") -> Iterator[Limit]:
    """Yield a limit of `num_bytes`, or none. Limits that hold at the same time have different labels.

    The control group is removed afterwards; its processes must have ended by then.
    """
    if num_bytes is None:
        yield Limit(kind="none", num_bytes=0)
        return
    created = _create_group(num_bytes, label)
    if created is None:
        yield Limit(kind="RLIMIT_DATA", num_bytes=num_bytes)
        return
    kind, group = created
    try:
        yield Limit(kind=kind, num_bytes=num_bytes, group=str(group))
    finally:
        group.rmdir()


def _create_group(num_bytes: int, label: str) -> tuple[str, Path] | None:
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines() if line]
    kinds = {controller: path for _, controllers, path in lines for controller in controllers.split(",")}
    name = f"layerstream-bench-{os.getpid()}{label}"
    choices = []
    if "memory" in kinds:
        choices.append(
            ("cgroup v1", ROOT / "memory" / kinds["memory"].lstrip("/") / name, "memory.limit_in_bytes")
        )
    if "" in kinds:
        choices.append(("cgroup v2", ROOT / kinds[""].lstrip("/") / name, "memory.max"))
    for kind, group, file in choices:
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            # where no such file system is mounted, this is a plain folder, and there is no file to change
            with (group / file).open("r+") as limit:
                limit.write(str(num_bytes))
        except OSError:
            group.rmdir()
            continue
        return kind, group
    return None
