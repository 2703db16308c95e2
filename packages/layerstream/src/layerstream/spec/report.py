"""The report of a run: what was moved, what was waited for, what it took. Frozen data.

Room: words.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .sizes import format_bytes, format_rate, format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamReport:
    """Everything a streamed model has done since it was loaded (or since `reset_report()`).

    Of several devices, seconds are the mean (they work side by side) and bytes the sum, except that what was read was read once.

    Attributes:
        model_name: path or Hub id.
        dtype: the run dtype.
        device: torch device string; several are joined by commas.
        sweeps: forwards of the model, each one visit of all blocks; of the device that ran the most.
        units: units a sweep visits.
        streamed_units: those of them that move in each sweep.
        bytes_read: read from disk.
        bytes_copied: copied from host to device.
        read_s: seconds in which at least one read of a unit was under way, summed over units (they overlap).
        copy_s: seconds of copies as seen by the host.
        wait_s: seconds that the computation waited for weights.
        compute_s: seconds inside forwards of the model, waits excluded.
        elapsed_s: seconds inside forwards of the model.
        peak_device_bytes: device memory at its peak, as the runtime counts it, on the device where it was highest; on a CPU device
            the growth of this process' resident memory over its size before the model was loaded.
        peak_host_bytes: growth of this process' resident memory over its size before loading.
        ledger_device_bytes: what the ledger predicted for the (or each) device.
        budget_device_bytes: what was allowed on it.
    """

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

    @property
    def read_bytes_per_s(self) -> float:
        """Bytes read by the second of forward; what the disk gave over the whole run."""
        return self.bytes_read / self.elapsed_s if self.elapsed_s else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, and `read_bytes_per_s`, as JSON-ready values."""
        return {**asdict(self), "read_bytes_per_s": self.read_bytes_per_s}

    def explain(self) -> str:
        """Return the report as text for people."""
        per_sweep = self.elapsed_s / self.sweeps if self.sweeps else 0.0
        return "\n".join(
            [
                f"{self.model_name} in {self.dtype} on {self.device}",
                f"  sweeps      {self.sweeps}, {format_seconds(per_sweep)} each",
                f"  units       {self.streamed_units} of {self.units} streamed",
                f"  read        {format_bytes(self.bytes_read)} at {format_rate(self.read_bytes_per_s)} over the whole run",
                f"  copied      {format_bytes(self.bytes_copied)} in {format_seconds(self.copy_s)}",
                f"  computing   {format_seconds(self.compute_s)}",
                f"  waiting     {format_seconds(self.wait_s)} for weights",
                f"  peak memory {format_bytes(self.peak_device_bytes)} (ledger {format_bytes(self.ledger_device_bytes)}, "
                f"budget {format_bytes(self.budget_device_bytes)})",
            ]
        )
