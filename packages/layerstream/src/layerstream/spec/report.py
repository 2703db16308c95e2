"""The report of a run: what was moved, how long it waited, how much memory it took. A frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .serialize import JsonValue
from .sizes import format_bytes, format_rate, format_seconds
from .speculation import SpeculationReport


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReport(JsonValue):
    """The work of a streamed model since it was loaded, or since `reset_report()`.

    With several devices, seconds are the mean over them, since they work in parallel. Bytes are the sum;
    shared reads count once.

    Attributes:
        model_name: path or Hub id.
        dtype: the run dtype.
        device: torch device string; several are joined by commas.
        sweeps: forwards of the model, each of which visits all blocks; on the device that ran the most.
        units: units that a sweep visits.
        streamed_units: units that move in every sweep.
        bytes_read: read from disk.
        bytes_copied: copied from host to device.
        read_s: for each unit the seconds in which at least one of its reads was in flight, summed over units
            (these overlap).
        copy_s: seconds of copies, by the device's own events where it has some.
        wait_s: seconds that the computation waited for weights.
        compute_s: seconds inside forwards of the model, without the waits.
        elapsed_s: seconds inside forwards of the model.
        peak_device_bytes: the peak of device memory as the runtime counts it, on the device where it was
            highest; on a CPU device, the growth of this process's resident memory since before the model was
            loaded.
        peak_host_bytes: the growth of this process's memory since before the model was loaded; with an
            accelerator, of its own memory (RssAnon and RssShmem), without the libraries' files.
        ledger_device_bytes: the peak that the ledger predicted for each device.
        budget_device_bytes: the budget for each device.
        ledger_host_bytes: the peak that the ledger predicted for host memory; 0 on a CPU device.
        budget_host_bytes: the budget for host memory; 0 on a CPU device.
        is_bit_exact: results equal the resident model's bit for bit; see `PlacementPlan.is_bit_exact`.
        speculation: what the draft proposed and the sweeps accepted; None without a draft.
    """

    DERIVED_KEYS: ClassVar = ("read_bytes_per_s",)

    model_name: str
    dtype: str
    device: str
    sweeps: int
    units: int
    streamed_units: int
    bytes_read: int
    bytes_copied: int
    read_s: float
    copy_s: float
    wait_s: float
    compute_s: float
    elapsed_s: float
    peak_device_bytes: int
    peak_host_bytes: int
    ledger_device_bytes: int
    budget_device_bytes: int
    ledger_host_bytes: int = 0
    budget_host_bytes: int = 0
    is_bit_exact: bool = True
    speculation: SpeculationReport | None = None

    @property
    def read_bytes_per_s(self) -> float:
        """Bytes read per second of forwards: the disk's throughput over the whole run."""
        return self.bytes_read / self.elapsed_s if self.elapsed_s else 0.0

    def explain(self) -> str:
        """Return the report as text for people."""
        per_sweep = self.elapsed_s / self.sweeps if self.sweeps else 0.0
        return "\n".join(
            [
                f"{self.model_name} in {self.dtype} on {self.device}",
                f"  sweeps      {self.sweeps}, {format_seconds(per_sweep)} each",
                f"  units       {self.streamed_units} of {self.units} streamed",
                f"  read        {format_bytes(self.bytes_read)} at {format_rate(self.read_bytes_per_s)} "
                "over the whole run",
                f"  copied      {format_bytes(self.bytes_copied)} in {format_seconds(self.copy_s)}",
                f"  computing   {format_seconds(self.compute_s)}",
                f"  waiting     {format_seconds(self.wait_s)} for weights",
                *self._memory_lines(),
                *([] if self.speculation is None else [f"  draft       {self.speculation.explain()}"]),
                *([] if self.is_bit_exact else ["  exactness   not bit-exact, as allowed: see the plan"]),
            ]
        )

    def _memory_lines(self) -> list[str]:
        rows = [
            ("peak memory", self.peak_device_bytes, self.ledger_device_bytes, self.budget_device_bytes),
            ("peak host  ", self.peak_host_bytes, self.ledger_host_bytes, self.budget_host_bytes),
        ]
        return [
            f"  {name} {format_bytes(peak)} (ledger {format_bytes(ledger)}, budget {format_bytes(budget)})"
            for name, peak, ledger, budget in rows
            if ledger
        ]
