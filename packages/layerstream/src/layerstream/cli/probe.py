"""`layerstream probe`: measure this machine's disk, copies and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..spec.sizes import format_bytes, format_rate
from . import backend, lazy_rich
from .options import AsJson, Device
from .printing import out_console, print_json, working

if TYPE_CHECKING:
    from ..spec.profiles import Machine

DiskPath = Annotated[
    Path | None,
    typer.Option(
        "--path",
        metavar="PATH",
        help="A large file to read, or a directory on the disk to measure.",
        show_default="a temporary file",
        exists=True,
    ),
]


def probe_command(path: DiskPath = None, device: Device = "auto", as_json: AsJson = False) -> None:
    """Measure this machine's disk, copies and memory. 'plan --machine' takes the output of --json."""
    with working("measuring disk, copies and memory"):
        machine = backend.probe_machine(path, device=device)
    if as_json:
        print_json(machine.to_dict())
    else:
        out_console().print(machine_table(machine))


def machine_table(machine: Machine) -> lazy_rich.Table:
    """Return the figures of `machine` as a table."""
    table = lazy_rich.Table(
        title=machine.name, title_justify="left", show_header=False, box=None, pad_edge=False
    )
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(style="dim")
    copies = "none, same memory" if machine.device_is_host else format_rate(machine.copy_bytes_per_s)
    rows = [
        ("device", machine.device, ""),
        ("device memory free", format_bytes(machine.device_memory_bytes), ""),
        ("host memory free", format_bytes(machine.host_memory_bytes), ""),
        ("disk", format_rate(machine.disk_bytes_per_s), "limits a sweep of streamed blocks"),
        ("host to device", copies, ""),
        (
            "device memory",
            format_rate(machine.memory_bytes_per_s),
            "limits one token through resident blocks",
        ),
        ("multiplication", f"{machine.flops_per_s / 1e9:,.0f} GFLOP/s", "limits long prompts and batches"),
    ]
    for row in rows:
        table.add_row(*row)
    return table
