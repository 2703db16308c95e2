"""What many rows take on several machines, each with a copy of the model. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass

from .serialize import JsonValue
from .sizes import TIB, format_bytes, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRun(JsonValue):
    """The job on one number of machines.

    Attributes:
        machines: how many machines are paid for.
        rows_per_machine: the most rows that one of them gets; some may get one less, or none.
        sweeps: sweeps of all machines together.
        read_bytes: what all sweeps read from disks, on all machines.
        hours: from the start to the end of the last machine, with loading.
        cost: of all machines from the start to the end, in the unit of the price.
    """

    machines: int
    rows_per_machine: int
    sweeps: int
    read_bytes: int
    hours: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterForecast(JsonValue):
    """What a job takes on several machines.

    Attributes:
        rows: the rows of the job.
        rows_per_sweep: how many rows share a sweep on each machine.
        sweeps_per_batch: the sweeps that such a batch of rows takes from prompt to answer.
        batch_s: the seconds that a batch takes; one that is not full takes as long.
        load_s: the seconds until a machine has the model and computes.
        price_per_hour: of one machine.
        runs: the job on each number of machines that was asked for.
        most_machines: the largest number of machines that pays: going beyond it adds more machine-hours than
            it saves hours of waiting.
    """

    rows: int
    rows_per_sweep: int
    sweeps_per_batch: int
    batch_s: float
    load_s: float
    price_per_hour: float
    runs: tuple[ClusterRun, ...]
    most_machines: int

    def explain(self) -> str:
        """Return the forecast as a table for people."""
        columns = ["machines", "rows each", "hours", "sweeps", "bytes read"]
        columns += ["cost"] if self.price_per_hour else []
        rows = [columns]
        for run in self.runs:
            cells = [
                f"{run.machines:,}",
                f"{run.rows_per_machine:,}",
                _as_number(run.hours),
                f"{run.sweeps:,}",
                _as_bytes(run.read_bytes),
            ]
            rows.append(cells + ([_as_number(run.cost)] if self.price_per_hour else []))
        widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
        noun = "machine pays" if self.most_machines == 1 else "machines pay"
        return "\n".join(
            [
                f"  cluster     {self.rows:,} rows in batches of {self.rows_per_sweep:,}; a batch takes "
                f"{self.sweeps_per_batch:,} sweeps, {format_seconds(self.batch_s)}; loading takes "
                f"{format_seconds(self.load_s)}",
                *(
                    "    " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
                    for row in rows
                ),
                f"    up to {self.most_machines:,} {noun}; each further machine adds more machine-hours than "
                "it saves hours of waiting",
            ]
        )


def _as_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _as_bytes(num_bytes: int) -> str:
    return f"{num_bytes / TIB:,.0f} TiB" if num_bytes >= 1000 * TIB else format_bytes(num_bytes)
