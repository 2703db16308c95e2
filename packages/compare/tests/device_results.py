"""Invented results of an accelerator, in the form of a worker's: complete, but nothing was measured."""

from __future__ import annotations

from typing import Any

from fake_workers import result

from layerstream_compare.case import Case
from layerstream_compare.measurement import Measurement
from layerstream_compare.protocol import measurement_of

MIB = 1024**2


def memory(
    *, device_held: int, host_held: int, working: int = 30, host_working: int = 12, process: int = 0
) -> dict[str, Any]:
    """Return the memory of a case, from sizes in MiB; `process` is NVML's figure."""
    shared = {"anonymous_bytes": 900 * MIB, "file_bytes": 400 * MIB}
    held = {**shared, "shared_bytes": host_held * MIB}
    peak_bytes = (1300 + host_held + host_working) * MIB
    on_device = {
        "device_allocated_bytes": (device_held + working) * MIB,
        "device_reserved_bytes": (device_held + working + 20) * MIB,
        "device_process_bytes": process * MIB,
    }
    return {
        "baseline_bytes": 1300 * MIB,
        "held_bytes": (device_held + host_held) * MIB,
        "device_held_bytes": device_held * MIB,
        "peak_over_baseline_bytes": peak_bytes + 300 * MIB - 1300 * MIB,
        "load_spike_bytes": 60 * MIB,
        "phases": [
            {"phase": "import", **shared, "peak_bytes": 1300 * MIB},
            {"phase": "load", **held, "peak_bytes": peak_bytes + 300 * MIB, **on_device},
            {"phase": "warm-up", **held, "peak_bytes": peak_bytes, **on_device},
            {"phase": "decode", **held, "peak_bytes": peak_bytes, **on_device},
        ],
    }


LEDGER = (
    ("device", "slots", "slots", 40),
    ("device", "edges", "edges (norms, buffers)", 20),
    ("device", "kv_cache", "KV cache", 5),
    ("device", "activations", "activations", 2),
    ("host", "staging", "staging", 57),
    ("host", "embedding", "input embedding", 27),
)
"""Memory, kind, purpose and size in MiB of each line of the streamed plan."""


def streamed_facts(ledger: tuple[tuple[str, str, str, int], ...] = LEDGER) -> dict[str, Any]:
    """Return the facts of the streamed variant that its notes are made from."""
    lines = [
        {"memory": tier, "kind": kind, "purpose": purpose, "bytes": size * MIB}
        for tier, kind, purpose, size in ledger
    ]
    planned = {
        tier: sum(line["bytes"] for line in lines if line["memory"] == tier) for tier in ("device", "host")
    }
    return {
        "device": "cuda:0",
        "ledger": lines,
        "is_resident": False,
        "budget_bytes": planned["device"],
        "host_budget_bytes": planned["host"],
        "sweep_read_bytes": 200 * MIB,
        "sweep_copy_bytes": 210 * MIB,
        "unquantized_weight_bytes": 1000 * MIB,
    }


def measured(variant: str, sizes: dict[str, Any], **changes: Any) -> Measurement:
    """Return a result with this memory; `budget`, `host_budget` and `attention` change its case."""
    fields = {name: changes.pop(name) for name in ("budget", "host_budget", "attention") if name in changes}
    case = Case(model="some/model", variant=variant, prompt="Hello", **fields)
    found = measurement_of(case, {"kind": "result", **result(memory=sizes, **changes)}, isolation="process")
    assert found.status == "ok", found.reason
    return found


def default_table(*, process: int = 0) -> list[Measurement]:
    """Return the four variants of the default table, measured on an accelerator."""
    facts = {"device": "cuda:0"}
    return [
        measured(
            "streamed", memory(device_held=60, host_held=84, process=process and 580), facts=streamed_facts()
        ),
        measured("resident", memory(device_held=1000, host_held=0, process=process), facts=facts),
        measured("bnb-int8", memory(device_held=560, host_held=0, process=process), facts=facts),
        measured("bnb-nf4", memory(device_held=340, host_held=2, process=process), facts=facts),
    ]
