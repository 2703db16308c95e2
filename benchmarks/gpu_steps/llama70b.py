"""Step `llama70b`: 138 GB of weights under a hard cap of 16 GB on the device, with 25 GB of host memory.

The weights are holes. Memory is measured against the ledger: on the device by torch's allocator and by the
card, on the host by the kernel's own count of the process's private and shared memory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import torch

import layerstream as ls

from .child import Case, Child, report, shown_bytes
from .lines import OK, Found, Row
from .models import SEVENTY_B, ensure, shape_of
from .sweeps import device_bytes, facts_of, host_bytes, places

GB = 10**9
CAP_BYTES, DEVICE_BYTES, HOST_BYTES = 16 * GB, 15 * GB, 25 * GB
NEW_TOKENS = 2
WORKLOAD = ls.Workload(prompt_tokens=16, new_tokens=NEW_TOKENS)
TARGET = 0.02
SAMPLE_EVERY_S = 0.02


def cases(child: Child) -> Iterator[Case]:
    """Yield the one run."""
    yield "two tokens", 15.0 if child.is_accelerator else 1.0, lambda: two_tokens(child)


class HostPeak:
    """The peak of this process's private and shared memory above what it was at the start."""

    def __init__(self) -> None:
        self.start_bytes = self.now_bytes()
        self.peak_bytes = self.start_bytes
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="host-peak", daemon=True)

    @staticmethod
    def now_bytes() -> int:
        """Return RssAnon and RssShmem: page-locked memory shows as either."""
        fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return sum(int(field[1]) * 1024 for field in fields if field[0] in ("RssAnon:", "RssShmem:"))

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_EVERY_S):
            self.peak_bytes = max(self.peak_bytes, self.now_bytes())

    def __enter__(self) -> HostPeak:
        """Start sampling."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop sampling."""
        self._stopped.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, self.now_bytes())

    @property
    def grown_bytes(self) -> int:
        """How far the peak is above the start."""
        return self.peak_bytes - self.start_bytes


def two_tokens(child: Child) -> Found:
    """Generate two tokens and compare the peaks with the ledger."""
    path = ensure(child, SEVENTY_B)
    cap_bytes = cap_device(child)
    budget = budget_for(child, path, cap_bytes)
    start_s = monotonic()
    with HostPeak() as host, child.load(path, budget, WORKLOAD) as streamed:
        assert not streamed.plan.is_resident, streamed.plan.explain()
        loaded_bytes = host.now_bytes() - host.start_bytes
        report_loaded(child, monotonic() - start_s, loaded_bytes)
        seconds = generate(child, streamed)
        sleep(2 * SAMPLE_EVERY_S)
        plan, work = streamed.plan, streamed.report()
        device = device_peak(child)
    figures: dict[str, Any] = {
        "seconds": seconds,
        "host_grown_bytes": host.grown_bytes,
        "host_loaded_bytes": loaded_bytes,
        "cap_bytes": cap_bytes,
        "device": device,
        **facts_of(plan, work),
    }
    rows = (
        *device_rows(child, plan.ledger, device, cap_bytes),
        *host_rows(child, plan.ledger, host.grown_bytes, work.peak_host_bytes),
    )
    return Found(rows=(time_row(child, plan, work, seconds, cap_bytes), *rows), figures=figures)


def time_row(
    child: Child, plan: ls.PlacementPlan, work: ls.StreamReport, seconds: float, cap_bytes: int
) -> Row:
    """Return how long the tokens took, and what was moved for them."""
    shape = shape_of(child, SEVENTY_B)
    title = f"{shown_bytes(shape.weight_bytes)} of weights in {shape.num_blocks} blocks"
    return Row(
        what=f"70B shape: two tokens{f' under a cap of {cap_bytes / 1e9:.0f} GB' if cap_bytes else ''}",
        found=f"{seconds:.1f} s",
        target="runs to the end",
        met=True,
        note=f"{title}, {places(plan)}; {rates(work, seconds)}; what is read are holes",
        is_promise=True,
    )


def rates(work: ls.StreamReport, seconds: float) -> str:
    """Return what was moved in a second, as text."""
    moved = {"read": work.bytes_read, "copied": work.bytes_copied}
    return ", ".join(f"{shown_bytes(size / seconds)}/s {how}" for how, size in moved.items() if size)


def generate(child: Child, streamed: ls.StreamedModel) -> float:
    """Generate the tokens and return the seconds that they take."""
    ids = torch.arange(3, 19, device=streamed.device).reshape(1, -1)
    start_s = monotonic()
    rows = streamed.generate(
        input_ids=ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False
    )
    child.synchronize()
    assert rows.shape[1] == ids.shape[1] + NEW_TOKENS, rows.shape
    return monotonic() - start_s


def report_loaded(child: Child, seconds: float, loaded_bytes: int) -> None:
    """Append what is known before the first token, which may take longer than there is time."""
    note = f"{shown_bytes(loaded_bytes)} of host memory grown"
    if device := device_peak(child):
        note += f", {shown_bytes(device['allocated'])} allocated on the device at the peak"
    row = Row(what="70B shape: loaded", found=f"{seconds:.1f} s", note=note)
    report(child, "loading", OK, "", seconds, Found(rows=(row,), figures={"host_bytes": loaded_bytes}))


def cap_device(child: Child) -> int:
    """Cap the device's memory for this process; return the cap, or 0 where torch has none."""
    module = torch.get_device_module(child.torch_device)
    if not child.is_accelerator or not hasattr(module, "set_per_process_memory_fraction"):
        return 0
    # what torch and the driver's libraries allocate on first use belongs to neither
    warm = torch.ones(256, 256, device=child.torch_device, dtype=torch.float16)
    (warm @ warm).sum().item()
    del warm
    module.empty_cache()
    total_bytes = module.get_device_properties(child.torch_device).total_memory
    cap_bytes = min(CAP_BYTES, int(0.95 * total_bytes))
    module.set_per_process_memory_fraction(cap_bytes / total_bytes, child.torch_device)
    module.reset_peak_memory_stats(child.torch_device)
    return cap_bytes


def budget_for(child: Child, path: Path, cap_bytes: int) -> ls.MemoryBudget:
    """Return 15 GB and 25 GB, or less on a small machine; budgets of a tiny model's own size elsewhere."""
    if not child.is_judged:
        device = device_bytes(child, path, WORKLOAD)
        half = host_bytes(child, path, device, WORKLOAD, 0.5) if child.has_two_tiers else "min"
        return ls.MemoryBudget(device=device, host=half)
    # the planner knows what is free in host memory here
    free = child.plan(path, ls.MemoryBudget(device=DEVICE_BYTES, host="auto"), WORKLOAD)
    host = min(HOST_BYTES, int(0.8 * free.ledger.host_budget_bytes))
    return ls.MemoryBudget(device=min(DEVICE_BYTES, (cap_bytes or CAP_BYTES) * 15 // 16), host=host)


def device_peak(child: Child) -> dict[str, int]:
    """Return torch's peaks, and what the whole card has in use."""
    module = torch.get_device_module(child.torch_device)
    if not child.is_accelerator or not hasattr(module, "max_memory_allocated"):
        return {}
    found = {
        "allocated": int(module.max_memory_allocated(child.torch_device)),
        "reserved": int(module.max_memory_reserved(child.torch_device)),
    }
    if hasattr(module, "mem_get_info"):
        free, total = module.mem_get_info(child.torch_device)
        found["card_in_use"] = int(total - free)
    return found


def device_rows(
    child: Child, ledger: ls.MemoryLedger, device: dict[str, int], cap_bytes: int
) -> Iterator[Row]:
    """Yield the device's peaks against the ledger, the budget and the cap."""
    runtime = runtime_bytes(ledger)
    if device:
        counted = ledger.device_bytes - runtime
        note = (
            f"{shown_bytes(device['allocated'])} allocated, "
            f"{shown_bytes(counted)} in the ledger without its runtime line"
        )
        yield child.within("70B shape: device peak / ledger", device["allocated"] / counted, TARGET, note)
        peak = device["allocated"] + runtime
        note = f"{shown_bytes(peak)} with the runtime line, {shown_bytes(ledger.device_budget_bytes)} allowed"
        row = child.at_most("70B shape: device peak / budget", peak / ledger.device_budget_bytes, 1.0, note)
        yield replace(row, is_promise=True)
    if "card_in_use" in device and cap_bytes:
        used = device["card_in_use"]
        note = (
            f"{shown_bytes(used)} in use on the card, context and other programs included; "
            f"a cap of {shown_bytes(cap_bytes)}"
        )
        yield child.at_most("70B shape: card in use / cap", used / cap_bytes, 1.0, note)


def runtime_bytes(ledger: ls.MemoryLedger) -> int:
    """Return the ledger's allowance for what torch and its libraries take."""
    return sum(line.num_bytes for line in ledger.lines if line.kind is ls.LedgerKind.RUNTIME)


def host_rows(child: Child, ledger: ls.MemoryLedger, grown: int, reported: int) -> Iterator[Row]:
    """Yield the host's peak against the ledger, the budget and what the report says."""
    expected, allowed = ledger.host_bytes, ledger.host_budget_bytes
    where = "in the ledger"
    if not child.is_accelerator:
        # the fake device's memory is host memory too, and a CPU has no other
        expected += ledger.device_bytes - runtime_bytes(ledger)
        allowed += ledger.device_budget_bytes
        where = "in the ledger for host and device, without its runtime line"
    note = f"{shown_bytes(grown)} grown (RssAnon and RssShmem), {shown_bytes(expected)} {where}"
    yield child.within("70B shape: host peak / ledger", grown / expected, TARGET, note)
    note = f"{shown_bytes(grown)} grown, {shown_bytes(allowed)} allowed"
    row = child.at_most("70B shape: host peak / budget", grown / allowed, 1.0, note)
    yield replace(row, is_promise=True)
    if child.has_two_tiers:
        # on a CPU the report counts the libraries' files too
        note = f"{shown_bytes(reported)} in the report, {shown_bytes(grown)} by the kernel's own figures"
        yield child.within(
            "70B shape: host peak, the report's / the kernel's", reported / grown, TARGET, note
        )
