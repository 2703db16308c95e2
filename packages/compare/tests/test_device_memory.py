"""Device and host memory apart: what a streamed model holds in each, and how the figures are computed."""

from __future__ import annotations

import json
import mmap
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

import layerstream as ls
from layerstream.testing import FakeAsyncRuntime
from layerstream_compare.case import Case
from layerstream_compare.measurement import Measurement, Memory, PhaseMemory
from layerstream_compare.protocol import measurement_of
from layerstream_compare.reports.files import memory_notes
from layerstream_compare.reports.metrics import BY_KEY
from layerstream_compare.variants import streamed
from layerstream_compare.variants.loaded import Loaded
from layerstream_compare.worker.memory import read_memory
from layerstream_compare.worker.run import run_case

MIB = 1024**2


def phase(name: str, **mebibytes: int) -> PhaseMemory:
    sizes = {"anonymous": 0, "file": 0, "peak": 0} | mebibytes
    return PhaseMemory(phase=name, **{f"{key}_bytes": size * MIB for key, size in sizes.items()})


ON_DEVICE = Memory(
    baseline_bytes=500 * MIB,
    held_bytes=140 * MIB,
    device_held_bytes=60 * MIB,
    peak_over_baseline_bytes=700 * MIB,
    load_spike_bytes=90 * MIB,
    phases=(
        phase("import", anonymous=300, file=200, peak=500),
        # the mapped checkpoint counts in this peak
        phase("load", anonymous=310, shared=80, file=200, peak=1200, device_allocated=64),
        phase("warm-up", anonymous=310, shared=80, file=250, peak=640, device_allocated=70),
        phase("decode", anonymous=310, shared=80, file=250, peak=655, device_allocated=68),
    ),
)


def value(memory: Memory, key: str) -> float | None:
    case = Case(model="m", variant="streamed")
    return BY_KEY[key].value(Measurement(case=case, status="ok", memory=memory))


@pytest.mark.parametrize(
    ("key", "mebibytes"),
    [
        ("device_held_bytes", 60),
        ("device_working_bytes", 10),
        ("device_peak_bytes", 70),
        ("host_held_bytes", 80),
        # 655 resident, of which 250 are mapped files, 300 were there before and 80 are weights
        ("host_working_bytes", 25),
        ("host_needed_bytes", 105),
        ("held_bytes", 140),
        ("working_bytes", 35),
        ("needed_bytes", 175),
        ("mapped_bytes", 50),
        ("device_process_bytes", None),
    ],
)
def test_figures_of_an_accelerator_and_of_host_memory_are_apart_and_add_up(key, mebibytes):
    assert value(ON_DEVICE, key) == (None if mebibytes is None else mebibytes * MIB)


@pytest.mark.parametrize("key", [key for key in BY_KEY if key.startswith(("device_", "host_"))])
def test_on_a_cpu_there_is_no_figure_of_a_device_or_of_host_memory(key):
    memory = Memory(
        baseline_bytes=1,
        held_bytes=2,
        peak_over_baseline_bytes=3,
        load_spike_bytes=0,
        phases=(phase("import", anonymous=1, peak=1), phase("decode", anonymous=3, peak=4)),
    )
    assert not memory.has_device
    assert value(memory, key) is None


def test_the_prompt_of_an_accelerator_is_measured_by_its_allocator():
    first = phase("first-token", anonymous=310, shared=80, file=250, peak=640, device_allocated=95)
    memory = Memory(
        baseline_bytes=0,
        held_bytes=60 * MIB,
        device_held_bytes=60 * MIB,
        peak_over_baseline_bytes=0,
        load_spike_bytes=0,
        phases=(*ON_DEVICE.phases, first),
    )
    assert value(memory, "prefill_extra_bytes") == 35 * MIB


def test_shared_memory_counts_neither_as_private_nor_as_a_mapped_file():
    before = read_memory()
    with mmap.mmap(-1, 24 * MIB) as pinned:  # shared and anonymous, as a driver allocates it
        pinned.write(b"x" * len(pinned))
        after = read_memory()
    slack = 2 * MIB
    assert after.shared_bytes - before.shared_bytes == pytest.approx(24 * MIB, abs=slack)
    assert after.file_bytes - before.file_bytes == pytest.approx(0, abs=slack)
    assert after.resident_bytes - before.resident_bytes == pytest.approx(24 * MIB, abs=2 * slack)


def load_on_fake_device(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Loaded:
    """Load a streamed model onto a device that is simulated on the CPU."""
    monkeypatch.setattr(streamed.ls, "load", partial(ls.load, runtime=FakeAsyncRuntime(lag_s=0.0)))
    return streamed.load(Case(**{"variant": "streamed", "prompt": "Hello", "max_new_tokens": 4} | changes))


def test_the_streamed_variant_takes_the_least_of_both_memories_by_default(tiny_model, monkeypatch):
    loaded = load_on_fake_device(monkeypatch, model=tiny_model)
    facts = loaded.facts()
    loaded.close()
    assert "H" not in facts["placement"]
    assert facts["host_ledger_bytes"] <= facts["host_budget_bytes"]
    sizes = {(line["memory"], line["kind"]): line["bytes"] for line in facts["ledger"]}
    slots, staging = sizes["device", "slots"], sizes["host", "staging"]
    assert loaded.extra_device_held_bytes == slots
    assert loaded.extra_held_bytes == slots + staging + sizes.get(("host", "embedding"), 0)
    assert sum(size for (where, _), size in sizes.items() if where == "device") == facts["ledger_bytes"]
    assert sum(size for (where, _), size in sizes.items() if where == "host") == facts["host_ledger_bytes"]
    assert facts["sweep_read_bytes"] > 0
    assert not facts["is_resident"]


def test_a_host_budget_lets_the_streamed_variant_keep_weights_in_host_memory(tiny_model, monkeypatch):
    least = load_on_fake_device(monkeypatch, model=tiny_model)
    least.close()
    loaded = load_on_fake_device(monkeypatch, model=tiny_model, host_budget="64 MiB")
    facts = loaded.facts()
    loaded.close()
    assert set(facts["placement"]) == {"H"}
    assert facts["sweep_read_bytes"] == 0
    assert facts["host_budget_bytes"] == 64 * MIB
    held_on_host = loaded.extra_held_bytes - loaded.extra_device_held_bytes
    assert held_on_host > least.extra_held_bytes - least.extra_device_held_bytes
    # the budget of one memory does not change the other
    assert loaded.extra_device_held_bytes == least.extra_device_held_bytes


def test_on_a_cpu_a_host_budget_changes_nothing(tiny_model):
    case = Case(model=tiny_model, variant="streamed", prompt="Hello", max_new_tokens=4, device="cpu")
    facts = []
    for host_budget in ("min", "1 GiB"):
        loaded = streamed.load(case.with_changes(host_budget=host_budget))
        facts.append(loaded.facts())
        loaded.close()
        assert loaded.extra_device_held_bytes == 0
    assert facts[0]["ledger"] == facts[1]["ledger"]
    assert facts[0]["placement"] == facts[1]["placement"]
    assert "host_budget_bytes" not in facts[0]


def test_a_case_on_a_device_reports_both_memories_and_its_notes_name_the_host(tiny_model, monkeypatch):
    monkeypatch.setattr(streamed.ls, "load", partial(ls.load, runtime=FakeAsyncRuntime(lag_s=0.0)))
    case = Case(model=tiny_model, variant="streamed", prompt="Hello", max_new_tokens=4, quality=False)
    messages: list[dict[str, Any]] = []
    run_case(case, lambda kind, **data: messages.append({"kind": kind, **data}))
    measurement = measurement_of(case, json.loads(json.dumps(messages[-1])), isolation="in-process")
    assert measurement.status == "ok", measurement.reason
    memory = measurement.memory
    assert 0 < memory.device_held_bytes < memory.held_bytes
    assert measurement.facts["unquantized_weight_bytes"] > 0
    on_device = replace(memory, held_bytes=10**9, device_held_bytes=10**9)
    resident = replace(measurement, case=case.with_changes(variant="resident"), memory=on_device, facts={})
    tiers, note = memory_notes([measurement, resident])
    assert tiers.startswith("streamed plans ")
    assert "of host memory, more than resident (0 B): weights pass through pinned host memory" in note
